"""What rounding alone may do: the magnitudes that errors are judged against, and the noise of a run.

magnitudes.py  the sums of magnitudes behind state and weights, under the optimizers of the package
own_rules.py   the same under an update rule of the user's own
samples.py     the summands of a gradient, sample by sample
copies.py      copies of a network and its loss that share nothing with them
passing.py     what passes through a point of a network, watched or moved
last_bits.py   a run with other last bits: how far rounding alone moves it
"""

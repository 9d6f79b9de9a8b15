"""What is compared: a run under a layout, and the serial run that it has to equal.

record.py     an experiment, run step by step: losses, gradients, optimizer state, weights
outcome.py    what is left after the last update: evaluation mode, counts, weights to load
replay.py     the serial run once more, as the sum of its samples in another order
replayed.py   serial programs of layouts that make other updates: weight_stashing.py, variable_batch.py, local_norm.py
reference.py  the serial run of a layout, and whether it is the sum of its samples
kept.py       serial runs, each made once
"""

"""What `verify` tries: networks, programs, variations, layouts.

networks.py    networks for verify alone, with the layers that the shipped ones lack
programs.py    what programs change under way: weights frozen, unfrozen, loaded, replaced
variations.py  other optimizers, losses and types of numbers
exact.py       whole numbers, where equal means every bit
layouts.py     every layout of a number of ranks; for many networks a covering set
"""

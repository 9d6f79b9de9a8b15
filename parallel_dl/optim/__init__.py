"""Update rules and learning-rate policies. To read in this order: rates, optimizers."""

from parallel_dl.optim import rates
from parallel_dl.optim.optimizers import SGD, Adam, AdamW, Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "rates"]

"""Update rules and learning-rate policies. To read in this order: rates, optimizers, norms, lars."""

from parallel_dl.optim import rates
from parallel_dl.optim.lars import LARS
from parallel_dl.optim.norms import gradient_squares, sum_of_squares
from parallel_dl.optim.optimizers import SGD, Adam, AdamW, Optimizer

__all__ = ["LARS", "SGD", "Adam", "AdamW", "Optimizer", "gradient_squares", "rates", "sum_of_squares"]

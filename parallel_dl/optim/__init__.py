"""Update rules and learning-rate policies.

To read in this order: rates, options, state, optimizer, sgd, adam, norms, lars, by_name.
"""

from parallel_dl.optim import rates
from parallel_dl.optim.adam import Adam, AdamW
from parallel_dl.optim.by_name import RULES, make, rule_named
from parallel_dl.optim.lars import LARS
from parallel_dl.optim.norms import gradient_squares, sum_of_squares
from parallel_dl.optim.optimizer import Optimizer
from parallel_dl.optim.options import Option
from parallel_dl.optim.sgd import SGD

__all__ = [
    "LARS",
    "RULES",
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "Option",
    "gradient_squares",
    "make",
    "rates",
    "rule_named",
    "sum_of_squares",
]

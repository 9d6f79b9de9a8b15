"""Automatic differentiation over NumPy arrays.

To read in this order: tensor, results, tape, ops, backward_pass, accumulation, meeting, gradcheck, memory.
"""

from parallel_dl.autograd.tensor import Tensor  # isort: skip  (first: ops and tape are made of it)
from parallel_dl.autograd import ops
from parallel_dl.autograd.backward_pass import Deferred, backward, is_in_backward
from parallel_dl.autograd.gradcheck import gradcheck
from parallel_dl.autograd.meeting import abandon
from parallel_dl.autograd.memory import keep_freed_memory
from parallel_dl.autograd.tape import computed_by, is_grad_enabled, no_grad, once, primitive

keep_freed_memory()

__all__ = [
    "Deferred",
    "Tensor",
    "abandon",
    "backward",
    "computed_by",
    "gradcheck",
    "is_grad_enabled",
    "is_in_backward",
    "no_grad",
    "once",
    "ops",
    "primitive",
]

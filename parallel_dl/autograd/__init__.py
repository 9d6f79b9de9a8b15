"""Automatic differentiation over NumPy arrays. To read in this order: tensor, tape, ops, gradcheck."""

from parallel_dl.autograd.tensor import Tensor  # first: ops and tape are made of it
from parallel_dl.autograd import ops  # isort: skip
from parallel_dl.autograd.gradcheck import gradcheck
from parallel_dl.autograd.tape import Deferred, backward, is_grad_enabled, no_grad, once, primitive

__all__ = ["Deferred", "Tensor", "backward", "gradcheck", "is_grad_enabled", "no_grad", "once", "ops", "primitive"]

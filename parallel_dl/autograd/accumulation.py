"""Gradients that arrive at leaves: summed in `.grad`, in its buffer if it has one; hooks run when all have arrived."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from parallel_dl.autograd.results import Pullback
from parallel_dl.autograd.tensor import Array, Tensor


def accumulate(leaf: Tensor, pullback: Pullback, g: Array) -> None:
    """Adds pullback(g) to a leaf's gradient; the first contribution is written straight into its buffer.

    A leaf that needs no gradient gets none, but the pullback is called: it may be a collective that other ranks call.
    """
    if not leaf.requires_grad:
        pullback(g)
        return
    grad, buffer = leaf.grad, leaf.grad_buffer
    if grad is None and buffer is not None and _writes_into_out(pullback):
        pullback(g, buffer)
        leaf.grad = buffer
        return
    contribution = np.asarray(pullback(g))
    data = leaf.data
    if contribution.shape != data.shape:
        raise ValueError(f"a pullback gave a gradient of shape {contribution.shape} to a tensor of shape {data.shape}")
    if grad is None and buffer is not None:
        buffer[...] = contribution
        leaf.grad = buffer
    elif grad is None:
        if contribution.dtype != data.dtype:
            leaf.grad = contribution.astype(data.dtype)
        elif contribution is g or contribution.base is not None:  # it may be somebody else's gradient as well
            leaf.grad = contribution.copy(order="K")  # sums go on in the same order of memory
        else:
            leaf.grad = contribution
    elif grad is buffer:
        grad += contribution
    else:
        total = np.asarray(grad + contribution, dtype=data.dtype)
        total.flags.writeable = grad.flags.writeable  # what contains a sum over ranks must not be summed again
        leaf.grad = total


def _writes_into_out(pullback: Pullback) -> bool:
    """Whether its second argument is called `out` (see `primitive`): asked of the code, `inspect` would be slow."""
    code: Any = getattr(pullback, "__code__", None)
    return code is not None and code.co_argcount > 1 and code.co_varnames[1] == "out"


class Completion:
    """Calls the hooks of each leaf as soon as everything that a backward pass from `roots` adds to it is there."""

    def __init__(self, roots: Iterable[Tensor]) -> None:
        self._remaining: dict[int, int] = {}  # id of a leaf -> number of edges from which gradients will still arrive
        stack = list(roots)
        seen = {node.number for node in stack}
        while stack:
            for parent, _ in stack.pop().edges or ():
                if parent.edges is None:
                    self._remaining[id(parent)] = self._remaining.get(id(parent), 0) + 1
                elif parent.number not in seen:
                    seen.add(parent.number)
                    stack.append(parent)

    def arrived(self, leaf: Tensor) -> None:
        """One of the gradients is there."""
        self._remaining[id(leaf)] -= 1
        if self._remaining[id(leaf)] == 0 and leaf.hooks:
            for hook in tuple(leaf.hooks):
                hook(leaf)

"""What an operation returns: tensors with edges to what they were computed from.

An operation with several results has one node more, to which each result has an edge, and which gathers the results'
gradients for the pullbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parallel_dl.autograd.tensor import Array, Tensor, next_number

Pullback = Callable[..., Any]
Edges = Sequence[tuple[Tensor, Pullback]]

_new = Tensor.__new__
# the data of a node that gathers
_SEVERAL = np.empty(0)


def result(value: Any, edges: Edges | None) -> Tensor:
    """A tensor of this value; without edges it needs no gradient."""
    # Tensor._begin, without the calls: this is what every operation pays
    tensor = _new(Tensor)
    tensor.data = value if type(value) is np.ndarray else np.asarray(value)
    tensor.requires_grad = edges is not None
    tensor.edges = edges
    tensor.number = next_number()
    tensor.grad = tensor.grad_buffer = tensor.hooks = None
    return tensor


class _Gathered(dict):
    """The gradient of an operation with several results: result's index -> gradient, for those that have one."""

    def __add__(self, other: _Gathered) -> _Gathered:
        self.update(other)  # each result sends its gradient once: nothing is overwritten
        return self


def several_results(values: tuple[Array, ...], edges: Edges) -> tuple[tuple[Tensor, ...], Tensor]:
    """(the results of one operation, the node that gathers their gradients and has the operation's edges)."""
    last: list = []  # what was gathered last and the tuple made of it, so that all pullbacks get the same one

    def whole(gathered: _Gathered) -> tuple[Array, ...]:
        if not last or last[0] is not gathered:
            last[:] = (
                gathered,
                tuple(
                    np.asarray(gathered[i], value.dtype) if i in gathered else np.zeros_like(value)
                    for i, value in enumerate(values)
                ),
            )
        return last[1]

    def of_all(pullback: Pullback) -> Pullback:
        return lambda gathered: pullback(whole(gathered))

    def of_one(index: int) -> Pullback:
        return lambda g: _Gathered({index: g})

    node = result(_SEVERAL, tuple((parent, of_all(pullback)) for parent, pullback in edges))
    return tuple(result(value, ((node, of_one(index)),)) for index, value in enumerate(values)), node


def full_gradient(node: Tensor, g: Any) -> Any:
    """The gradient in the node's own dtype, and zeros for one that is None: what every rank gives to a collective."""
    if node.data is _SEVERAL:
        return _Gathered() if g is None else g
    return np.zeros_like(node.data) if g is None else np.asarray(g, node.data.dtype)

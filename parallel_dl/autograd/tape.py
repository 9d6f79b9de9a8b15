"""Reverse-mode differentiation: `@primitive` records what was computed, `backward` runs it in reverse.

An operation on arrays y = f(a, b, ...) is recorded as a node with one edge (parent, pullback) per differentiable
argument; a pullback maps the gradient of y to the gradient of that argument. `backward` visits nodes newest first. A
node is always newer than what it was computed from, so creation order is a topological order: nothing is sorted,
nothing recurses, and every process that ran the same program visits its nodes in the same order.

(The calling rule, positional arguments differentiable and keyword arguments static, is that of JAX's Autodidax;
"pullback" is the word of Julia's ChainRules.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from parallel_dl.autograd.tensor import Array, Tensor

Pullback = Callable[..., Any]

_recording = True

# Nodes of operations that meet other ranks in their pullback and have not met them yet, oldest first. See `primitive`.
_awaited: dict[int, Tensor] = {}


class _Freed(tuple):
    """The edges of a node that backward has passed."""


_FREED = _Freed()


def _result(value: Any, edges: tuple | None) -> Tensor:
    tensor = Tensor.__new__(Tensor)
    tensor.data = value if type(value) is np.ndarray else np.asarray(value)
    tensor._begin(edges is not None, edges)
    return tensor


class _Pieces(dict):
    """The gradient of an operation with several results: result's index -> gradient, for those that have one."""

    def __add__(self, other: _Pieces) -> _Pieces:
        merged = _Pieces(self)
        for index, gradient in other.items():
            merged[index] = merged[index] + gradient if index in merged else gradient
        return merged

    def whole(self, values: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(self[i] if i in self else np.zeros_like(value) for i, value in enumerate(values))


def primitive(function: Callable | None = None, *, collective: bool = False) -> Any:
    """Turns a function on arrays that returns (value, pullbacks) into an operation on tensors.

    Positional arguments are differentiable: tensors, arrays or numbers, with one pullback each, `g -> gradient` (g has
    the value's shape). Keyword arguments are static. A pullback may take a second argument `out`, an array to write
    the gradient into, or None. No pullback may write into g or into the operation's inputs. A function with several
    results returns them as a tuple; its pullbacks then get a tuple of gradients.

    `collective=True` is for operations whose pullbacks communicate. All ranks have to meet there, even a rank whose
    input needs no gradient, or whose loss does not depend on the result. So the node is made for every tensor
    argument, and `backward` runs, with a gradient of zeros where none arrives, every such node that is older than its
    root and has not run yet. An array argument (no Tensor) is a constant on every rank and makes no node.
    """
    if function is None:
        return functools.partial(primitive, collective=collective)

    @functools.wraps(function)
    def apply(*arguments: Any, **static: Any) -> Any:
        values = []
        record = False
        for argument in arguments:
            if isinstance(argument, Tensor):
                values.append(argument.data)
                record = record or argument.requires_grad or collective
            else:
                values.append(argument)
        value, pullbacks = function(*values, **static)
        edges = None
        if record and _recording:
            edges = tuple(
                [
                    (argument, pullback)
                    for argument, pullback in zip(arguments, pullbacks)
                    if isinstance(argument, Tensor) and (argument.requires_grad or collective)
                ]
            )
        if type(value) is tuple:
            return _results(value, edges)
        result = _result(value, edges)
        if collective and edges is not None:
            _awaited[result.number] = result
        return result

    apply.is_primitive = True  # type: ignore[attr-defined]
    return apply


def _results(values: tuple[Array, ...], edges: tuple | None) -> tuple[Tensor, ...]:
    """Several results of one operation: each has an edge to one node that gathers their gradients."""
    if edges is None:
        return tuple(_result(value, None) for value in values)

    def gathered(pullback: Pullback) -> Pullback:
        return lambda pieces: pullback(pieces.whole(values))

    node = _result(np.empty(0), tuple((parent, gathered(pullback)) for parent, pullback in edges))

    def piece(index: int) -> Pullback:
        return lambda g: _Pieces({index: g})

    return tuple(_result(value, ((node, piece(index)),)) for index, value in enumerate(values))


def once(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Work that several pullbacks of one operation share: done by the first that asks, kept for the others.

    The pullbacks may run at different times (deferred weight gradients); they get the same g.
    """
    kept: list = []

    def shared(g: Array) -> Any:
        if not kept or kept[0] is not g:
            kept[:] = (g, function(g))
        return kept[1]

    return shared


@contextmanager
def no_grad() -> Iterator[None]:
    """Nothing is recorded inside: no history, no memory for it."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


def is_grad_enabled() -> bool:
    """Whether operations are being recorded (False inside `no_grad`)."""
    return _recording


class Deferred:
    """Weight gradients that `backward(defer=...)` left for later; `run()` adds them to `.grad`, in backward's order."""

    def __init__(self) -> None:
        self._work: list[tuple[Tensor, Pullback, Array]] = []
        self._remaining: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self._work)

    def run(self) -> None:
        """Computes what was deferred. A second call finds nothing left to do."""
        work, self._work = self._work, []
        for leaf, pullback, g in work:
            _accumulate(leaf, pullback, g)
            if self._remaining is not None:
                _count_down(leaf, self._remaining)


def backward(root: Tensor, gradient: Any = None, defer: Iterable[Tensor] = ()) -> Deferred:
    """Adds d root / d leaf (times `gradient`, 1 by default) to `.grad` of every leaf that requires a gradient.

    The history is freed in passing: a second pass over it raises RuntimeError. The gradients of the leaves in `defer`
    (weights) are not computed now but by `.run()` of the returned object: the gradients of inputs, which other ranks
    wait for, come first (zero-bubble pipelining, Qi et al. 2023, arXiv 2401.10241).
    """
    if gradient is None:
        if root.data.size != 1:
            raise ValueError(f"backward of a tensor of shape {root.shape} needs a gradient of that shape")
        gradient = np.ones_like(root.data)
    else:
        gradient = np.asarray(gradient.data if isinstance(gradient, Tensor) else gradient, dtype=root.dtype)
        if gradient.shape != root.shape:
            raise ValueError(f"gradient of shape {gradient.shape} for a tensor of shape {root.shape}")
    meeting = {number: node for number, node in _awaited.items() if number < root.number} if _awaited else {}
    if not root.requires_grad and not meeting:
        raise RuntimeError("backward from a tensor that depends on nothing that requires a gradient")

    deferred = Deferred()
    later = {id(leaf) for leaf in defer}
    nodes = {**meeting, root.number: root}
    gradients: dict[int, Any] = {root.number: gradient}
    remaining = _count_uses(nodes.values()) if Tensor.hooks_registered else None
    deferred._remaining = remaining
    if root.is_leaf:
        if root.requires_grad:
            _accumulate(root, lambda g: g, gradient)
            if remaining is not None:
                remaining[id(root)] = remaining.get(id(root), 0) + 1
                _count_down(root, remaining)
        del nodes[root.number]
    owned = set()  # numbers of nodes whose gradient is a sum made here, so that more can be added in place
    heap = [-number for number in nodes]
    heapify(heap)
    while heap:
        number = -heappop(heap)
        node = nodes.pop(number)
        g = gradients.pop(number, None)
        edges, node.edges = node.edges, _FREED
        if edges is _FREED:
            raise RuntimeError(
                "this part of the history was already run backward and freed; compute it again, "
                "or call backward once on the sum of the losses"
            )
        if _awaited:
            _awaited.pop(number, None)
        if g is None:  # other ranks wait for this one, nothing here depends on it
            g = np.zeros_like(node.data)
        for parent, pullback in edges:
            if parent.edges is None:
                if not parent.requires_grad:  # frozen on this rank, but other ranks need the call
                    pullback(g)
                elif id(parent) in later:
                    deferred._work.append((parent, pullback, g))
                else:
                    _accumulate(parent, pullback, g)
                    if remaining is not None:
                        _count_down(parent, remaining)
                continue
            contribution = pullback(g)
            parent_number = parent.number
            known = gradients.get(parent_number)
            if known is None:
                gradients[parent_number] = contribution
                if parent_number not in nodes:
                    nodes[parent_number] = parent
                    heappush(heap, -parent_number)
            elif parent_number in owned and type(known) is np.ndarray and known.dtype == contribution.dtype:
                known += contribution
            else:
                gradients[parent_number] = known + contribution
                owned.add(parent_number)
    return deferred


def _accumulate(leaf: Tensor, pullback: Pullback, g: Array) -> None:
    """Adds one contribution to a leaf's gradient; the first one is written straight into its buffer."""
    buffer = leaf.grad_buffer
    grad = leaf.grad
    if grad is None and buffer is not None:
        if getattr(getattr(pullback, "__code__", None), "co_argcount", 1) > 1:
            pullback(g, buffer)
        else:
            buffer[...] = pullback(g)
        leaf.grad = buffer
    elif grad is None:
        contribution = np.asarray(pullback(g), dtype=leaf.dtype)
        # a view or g itself may be somebody else's gradient as well
        leaf.grad = contribution.copy() if contribution is g or contribution.base is not None else contribution
    elif grad is buffer:
        grad += pullback(g)
    else:
        leaf.grad = np.asarray(grad + pullback(g), dtype=leaf.dtype)


def _count_uses(roots: Iterable[Tensor]) -> dict[int, int]:
    """id(leaf) -> number of edges from which backward from `roots` will add to its gradient."""
    uses: dict[int, int] = {}
    stack = list(roots)
    seen = {node.number for node in stack}
    while stack:
        for parent, _ in stack.pop().edges or ():
            if parent.edges is None:
                uses[id(parent)] = uses.get(id(parent), 0) + 1
            elif parent.number not in seen:
                seen.add(parent.number)
                stack.append(parent)
    return uses


def _count_down(leaf: Tensor, remaining: dict[int, int]) -> None:
    remaining[id(leaf)] -= 1
    if remaining[id(leaf)] == 0 and leaf.hooks:
        for hook in tuple(leaf.hooks):
            hook(leaf)

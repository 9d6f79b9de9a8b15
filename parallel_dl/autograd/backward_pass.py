"""The chain rule in reverse: `backward` visits what was recorded, newest first.

The gradient of a node is the sum of what arrives from the nodes computed from it. Each of them is newer than the node,
so once the newest node that waits is reached, its gradient is complete: creation order is a topological order. Nothing
is sorted, nothing recurses, and every process that ran the same program visits its nodes in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from parallel_dl.autograd.accumulation import Completion, accumulate
from parallel_dl.autograd.meeting import awaited
from parallel_dl.autograd.results import Pullback, full_gradient, result
from parallel_dl.autograd.tensor import Array, Tensor


class _Freed(tuple):
    """The edges of a node that backward has passed: what they led to may be gone."""

    def __iter__(self) -> Iterator:
        raise RuntimeError(
            "this part of the history was already run backward and freed; compute it again, "
            "or call backward once on the sum of the losses"
        )


_FREED = _Freed()

_in_backward: ContextVar[bool] = ContextVar("in_backward", default=False)


def is_in_backward() -> bool:
    """Whether this thread is running `backward`, or gradients that it deferred."""
    return _in_backward.get()


class Deferred:
    """Weight gradients deferred by `backward(defer=...)`; `run()` adds them to `.grad`, in the order of backward."""

    __slots__ = ("_completion", "_later", "_work")

    def __init__(self, leaves: Iterable[Tensor] = (), completion: Completion | None = None) -> None:
        self._later = {id(leaf) for leaf in leaves}
        self._completion = completion
        self._work: deque[tuple[Tensor, Pullback, Array]] = deque()

    def __len__(self) -> int:
        return len(self._work)

    def arrive(self, leaf: Tensor, pullback: Pullback, g: Array) -> None:
        """Adds pullback(g) to the leaf's gradient: now or, for a deferred leaf, when `run` is called."""
        if id(leaf) in self._later and leaf.requires_grad:
            self._work.append((leaf, pullback, g))
        else:
            self._add(leaf, pullback, g)

    def run(self) -> None:
        """Computes the deferred gradients. A second call does nothing."""
        before = _in_backward.set(True)
        try:
            while self._work:
                self._add(*self._work.popleft())  # what it holds is freed in passing
        finally:
            _in_backward.reset(before)

    def _add(self, leaf: Tensor, pullback: Pullback, g: Array) -> None:
        accumulate(leaf, pullback, g)
        if self._completion is not None:
            self._completion.arrived(leaf)


def backward(root: Tensor, gradient: Any = None, defer: Iterable[Tensor] = (), since: Tensor | None = None) -> Deferred:
    """Adds d root / d leaf (times `gradient`, 1 by default) to `.grad` of every leaf that requires a gradient.

    The history is freed on the way: a second pass over it raises RuntimeError. The gradients of the leaves in `defer`
    (weights) are computed later, by `.run()` of the returned object, so that the gradients of inputs, which other ranks
    wait for, come first (zero-bubble pipelining, Qi et al. 2023, arXiv 2401.10241).

    Collective nodes that do not lead to the root are run, too (see `primitive`). With `since`, only those newer than
    that tensor are: on a rank with outstanding forward passes of other stages or microbatches, pass the stage's input,
    which was made when its forward pass began.

    `gradient` has the root's shape and may be omitted for a root of one element; ValueError otherwise. RuntimeError for
    a root that depends on nothing that requires a gradient.
    """
    if gradient is None:
        if root.data.size != 1:
            raise ValueError(f"backward of a tensor of shape {root.shape} needs a gradient of that shape")
        gradient = np.ones_like(root.data)
    else:
        gradient = np.asarray(gradient.data if isinstance(gradient, Tensor) else gradient, dtype=root.dtype)
        if gradient.shape != root.shape:
            raise ValueError(f"gradient of shape {gradient.shape} for a tensor of shape {root.shape}")
    oldest, nodes = -1 if since is None else since.number, awaited()
    meeting = {number: node for number, node in nodes.items() if oldest < number < root.number} if nodes else {}
    if not root.requires_grad and not meeting:
        raise RuntimeError("backward of a tensor that depends on nothing that requires a gradient")
    if root.edges is None:
        root = result(gradient, ((root, _unchanged),))
    nodes = {**meeting, root.number: root} if meeting else {root.number: root}
    deferred = Deferred(defer, Completion(nodes.values()) if Tensor.hooks_registered else None)
    is_plain = deferred._completion is None and not deferred._later
    before = _in_backward.set(True)  # not in a `with`: this is what every backward pays
    try:
        _visit(nodes, {root.number: gradient}, accumulate if is_plain else deferred.arrive)
    finally:
        _in_backward.reset(before)
    return deferred


def _unchanged(g: Array) -> Array:
    return g


def _visit(
    nodes: dict[int, Tensor], gradients: dict[int, Any], arrive: Callable[[Tensor, Pullback, Array], None]
) -> None:
    """Visits `nodes` (number -> node) and what they came from; arrive(leaf, pullback, g) takes a leaf's gradient.

    `gradients` has, by number, what has arrived so far for each node that waits for its turn, None for nothing.
    """
    waiting = [(-number, node) for number, node in nodes.items()]
    if len(nodes) > 1:
        heapify(waiting)
        gradients = dict.fromkeys(nodes) | gradients
    to_meet = awaited()
    own_sums: set[int] = set()
    while waiting:
        node = heappop(waiting)[1]
        g = gradients.pop(node.number)
        edges, node.edges = node.edges, _FREED
        if to_meet and to_meet.pop(node.number, None) is not None:
            g = full_gradient(node, g)
        for parent, pullback in edges:  # type: ignore[union-attr]
            if parent.edges is None:
                arrive(parent, pullback, g)
                continue
            contribution, number = pullback(g), parent.number
            if number not in gradients:
                gradients[number] = contribution
                heappush(waiting, (-number, parent))
            else:
                gradients[number] = _sum(gradients[number], contribution, number, own_sums)


def _sum(known: Any, contribution: Any, number: int, own_sums: set[int]) -> Any:
    """What has arrived for node `number` and one more contribution, in place if the array is a sum made here."""
    if known is None:
        return contribution
    if number in own_sums and type(known) is np.ndarray and known.dtype == contribution.dtype:
        known += contribution
        return known
    own_sums.add(number)
    return known + contribution

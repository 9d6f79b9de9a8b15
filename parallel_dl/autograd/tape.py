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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from parallel_dl.autograd.tensor import Array, Tensor, next_number

Pullback = Callable[..., Any]

_recording = True

_in_backward = False

# Nodes of operations that meet other ranks in their pullback and have not met them yet, oldest first. See `primitive`.
_awaited: dict[int, Tensor] = {}


class _Freed(tuple):
    """The edges of a node that backward has passed."""


_FREED = _Freed()


# The data of a node that stands for an operation with several results.
_SEVERAL = np.empty(0)


def _result(value: Any, edges: Sequence | None) -> Tensor:
    # Tensor._begin, without the calls: this is what every operation pays
    tensor = Tensor.__new__(Tensor)
    tensor.data = value if type(value) is np.ndarray else np.asarray(value)
    tensor.requires_grad = edges is not None
    tensor.edges = edges
    tensor.number = next_number()
    tensor.grad = tensor.grad_buffer = tensor.hooks = None
    return tensor


class _Pieces(dict):
    """The gradient of an operation with several results: result's index -> gradient, for those that have one."""

    def __add__(self, other: _Pieces) -> _Pieces:
        self.update(other)  # each result sends its gradient once: nothing is overwritten
        return self


def primitive(function: Callable | None = None, *, collective: bool = False) -> Any:
    """Turns a function on arrays that returns (value, pullbacks) into an operation on tensors.

    Positional arguments are differentiable: tensors, arrays or numbers, with one pullback each, `g -> gradient` (g has
    the value's shape). Keyword arguments are static. A pullback may take a second argument `out`, an array to write
    the gradient into, or None. No pullback may write into g or into the operation's inputs. A function with several
    results returns them as a tuple; its pullbacks then get a tuple of gradients.

    `collective=True` is for operations whose pullbacks communicate. All ranks have to meet there, even a rank whose
    input needs no gradient, or whose loss does not depend on the result. So the node is made for every floating-point
    tensor argument, and `backward` runs, with a gradient of zeros where none arrives, every such node that is older
    than its root and has not run yet; g always has the value's dtype. An array argument (no Tensor) is a constant on
    every rank and makes no node.
    """
    if function is None:
        return functools.partial(primitive, collective=collective)

    @functools.wraps(function)
    def apply(*arguments: Any, **static: Any) -> Any:
        values: list[Any] = []
        tracked = []  # positions of the arguments that get an edge
        for argument in arguments:
            if isinstance(argument, Tensor):
                array = argument.data
                if argument.requires_grad or (collective and array.dtype.kind == "f"):
                    tracked.append(len(values))
                values.append(array)
            else:
                values.append(argument)
        if static:
            _check_static(apply, static)
        value, pullbacks = function(*values, **static)
        edges: list[tuple[Tensor, Pullback]] | None = None
        if tracked and _recording:
            edges = []
            for i in tracked:
                edges.append((arguments[i], pullbacks[i]))
        if type(value) is tuple:
            return _results(value, edges, collective)
        result = _result(value, edges)
        if collective and edges:
            _awaited[result.number] = result
        return result

    apply.is_primitive = True  # type: ignore[attr-defined]
    return apply


def _check_static(operation: Callable, static: dict[str, Any]) -> None:
    """Keyword arguments have no gradient: a tensor among them is taken as its array, unless it expects one."""
    for name, value in static.items():
        if isinstance(value, Tensor):
            if value.requires_grad:
                raise TypeError(
                    f"{operation.__name__}: {name} requires a gradient, but keyword arguments are constants; "
                    "pass it by position"
                )
            static[name] = value.data


def _results(values: tuple[Array, ...], edges: Sequence | None, collective: bool) -> tuple[Tensor, ...]:
    """Several results of one operation: each has an edge to one node that gathers their gradients."""
    if edges is None:
        return tuple(_result(value, None) for value in values)
    last: list = []  # the pieces gathered last and the tuple made of them, so that all pullbacks get the same one

    def whole(pieces: _Pieces) -> tuple[Array, ...]:
        if not last or last[0] is not pieces:
            last[:] = (
                pieces,
                tuple(
                    np.asarray(pieces[i], value.dtype) if i in pieces else np.zeros_like(value)
                    for i, value in enumerate(values)
                ),
            )
        return last[1]

    def gathered(pullback: Pullback) -> Pullback:
        return lambda pieces: pullback(whole(pieces))

    node = _result(_SEVERAL, tuple((parent, gathered(pullback)) for parent, pullback in edges))
    if collective:
        _awaited[node.number] = node

    def piece(index: int) -> Pullback:
        return lambda g: _Pieces({index: g})

    return tuple(_result(value, ((node, piece(index)),)) for index, value in enumerate(values))


def once(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Work that several pullbacks of one operation share: done by the first that asks, kept for the others.

    The pullbacks may run at different times (deferred weight gradients); they get the same g, and read-only views of
    the array, or the tuple of arrays, that the function returned.
    """
    kept: list = []

    def shared(g: Array) -> Any:
        if not kept or kept[0] is not g:
            made = function(g)
            kept[:] = g, tuple(map(_read_only, made)) if type(made) is tuple else _read_only(made)
        return kept[1]

    return shared


def _read_only(value: Any) -> Any:
    """A view: it becomes nobody's gradient without a copy, so changing a gradient cannot change what others share."""
    if not isinstance(value, np.ndarray):
        return value
    view = value.view()
    view.flags.writeable = False
    return view


@contextmanager
def no_grad() -> Iterator[None]:
    """Nothing is recorded inside: no history, no memory for it."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


def abandon() -> None:
    """Backward will never be run from what was computed so far: later ones do not meet the other ranks in it.

    For a program that goes on after an error in a forward or backward pass; all ranks call it.
    """
    _awaited.clear()


def is_grad_enabled() -> bool:
    """Whether operations are being recorded (False inside `no_grad`)."""
    return _recording


def is_in_backward() -> bool:
    """Whether `backward`, or what it deferred, is being run."""
    return _in_backward


class Deferred:
    """Weight gradients that `backward(defer=...)` left for later; `run()` adds them to `.grad`, in backward's order."""

    def __init__(self) -> None:
        self._work: deque[tuple[Tensor, Pullback, Array]] = deque()
        self._remaining: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self._work)

    def run(self) -> None:
        """Computes what was deferred. A second call finds nothing left to do."""
        global _in_backward
        before, _in_backward = _in_backward, True
        try:
            while self._work:
                leaf, pullback, g = self._work.popleft()  # what it holds is freed in passing
                _accumulate(leaf, pullback, g)
                if self._remaining is not None:
                    _count_down(leaf, self._remaining)
        finally:
            _in_backward = before


def backward(root: Tensor, gradient: Any = None, defer: Iterable[Tensor] = (), since: Tensor | None = None) -> Deferred:
    """Adds d root / d leaf (times `gradient`, 1 by default) to `.grad` of every leaf that requires a gradient.

    The history is freed in passing: a second pass over it raises RuntimeError. The gradients of the leaves in `defer`
    (weights) are not computed now but by `.run()` of the returned object: the gradients of inputs, which other ranks
    wait for, come first (zero-bubble pipelining, Qi et al. 2023, arXiv 2401.10241).

    Collective nodes that do not lead to the root are run too (see `primitive`), but with `since` only those that are
    newer than that tensor: the input of a pipeline stage, made when its forward pass began, on a rank that has forward
    passes of other stages or microbatches outstanding.
    """
    if gradient is None:
        if root.data.size != 1:
            raise ValueError(f"backward of a tensor of shape {root.shape} needs a gradient of that shape")
        gradient = np.ones_like(root.data)
    else:
        gradient = np.asarray(gradient.data if isinstance(gradient, Tensor) else gradient, dtype=root.dtype)
        if gradient.shape != root.shape:
            raise ValueError(f"gradient of shape {gradient.shape} for a tensor of shape {root.shape}")
    oldest = -1 if since is None else since.number
    meeting = {number: node for number, node in _awaited.items() if oldest < number < root.number} if _awaited else {}
    if not root.requires_grad and not meeting:
        raise RuntimeError("backward from a tensor that depends on nothing that requires a gradient")
    global _in_backward
    before, _in_backward = _in_backward, True
    try:
        return _run(root, gradient, meeting, {id(leaf) for leaf in defer})
    finally:
        _in_backward = before


def _run(root: Tensor, gradient: Array, meeting: dict[int, Tensor], later: set[int]) -> Deferred:
    """Visits `root` and the collective nodes in `meeting`, and what they came from; leaves in `later` are deferred."""
    deferred = Deferred()
    remaining = _count_uses([*meeting.values(), root]) if Tensor.hooks_registered else None
    deferred._remaining = remaining
    # number -> gradient of each node in the heap, None as long as nothing has arrived
    gradients: dict[int, Any] = dict.fromkeys(meeting)
    heap = [(-number, node) for number, node in meeting.items()]
    if not root.is_leaf:
        gradients[root.number] = gradient
        heap.append((-root.number, root))
    elif root.requires_grad:
        _accumulate(root, lambda g: g, gradient)
        if remaining is not None:
            remaining[id(root)] = remaining.get(id(root), 0) + 1
            _count_down(root, remaining)
    heapify(heap)
    owned = set()  # numbers of nodes whose gradient is a sum made here, so that more can be added in place
    while heap:
        node = heappop(heap)[1]
        number = node.number
        g = gradients.pop(number)
        edges = node.edges
        if edges is _FREED:
            raise RuntimeError(
                "this part of the history was already run backward and freed; compute it again, "
                "or call backward once on the sum of the losses"
            )
        assert edges is not None
        node.edges = _FREED
        if _awaited and _awaited.pop(number, None) is not None:
            g = _to_share(node, g)
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
            if parent_number not in gradients:
                gradients[parent_number] = contribution
                heappush(heap, (-parent_number, parent))
                continue
            known = gradients[parent_number]
            if known is None:
                gradients[parent_number] = contribution
            elif parent_number in owned and type(known) is np.ndarray and known.dtype == contribution.dtype:
                known += contribution
            else:
                gradients[parent_number] = known + contribution
                owned.add(parent_number)
    return deferred


def _to_share(node: Tensor, g: Any) -> Any:
    """The gradient that a collective node's pullbacks get: of one dtype on all ranks, zeros where none arrived."""
    if node.data is _SEVERAL:
        return _Pieces() if g is None else g
    return np.zeros_like(node.data) if g is None else np.asarray(g, node.data.dtype)


def _takes_out(pullback: Pullback) -> bool:
    code = getattr(pullback, "__code__", None)
    return code is not None and code.co_argcount > 1 and code.co_varnames[1] == "out"


def _accumulate(leaf: Tensor, pullback: Pullback, g: Array) -> None:
    """Adds one contribution to a leaf's gradient; the first one is written straight into its buffer."""
    grad, buffer = leaf.grad, leaf.grad_buffer
    if grad is None and buffer is not None and _takes_out(pullback):
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

"""The tape: `@primitive` makes of a function on arrays an operation that records what was computed.

An operation on arrays y = f(a, b, ...) is recorded as a node with one edge (parent, pullback) per differentiable
argument; a pullback maps the gradient of y to the gradient of that argument. `backward_pass` runs it in reverse.

(The calling rule, positional arguments differentiable and keyword arguments static, is that of JAX's Autodidax;
"pullback" is the word of Julia's ChainRules.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from parallel_dl.autograd.meeting import awaited
from parallel_dl.autograd.results import Pullback, result, several_results
from parallel_dl.autograd.tensor import Array, Tensor

_recording: ContextVar[bool] = ContextVar("recording", default=True)
_is_recording = _recording.get

Substitutes = Mapping[Any, Callable[..., Any]]
"""operation -> what computes it at the moment"""

_NONE: Substitutes = {}
_substitutes: ContextVar[Substitutes] = ContextVar("substitutes", default=_NONE)
_substitutes_now = _substitutes.get


def primitive(function: Callable | None = None, *, collective: bool = False) -> Any:
    """Turns a function on arrays that returns (value, pullbacks) into an operation on tensors.

    Positional arguments are differentiable: tensors, arrays or numbers, with one pullback each, `g -> gradient` (g has
    the value's shape). Keyword arguments are static. A pullback may take a second argument `out`, an array to write
    the gradient into, or None. No pullback may write into g or into the operation's inputs. A function with several
    results returns them as a tuple; its pullbacks then get a tuple of gradients.

    `collective=True` is for operations whose pullbacks communicate. All ranks must meet there, even a rank whose input
    needs no gradient, or whose loss does not depend on the result. So a node is made for every floating-point tensor
    argument, and `backward` runs every such node that is older than its root and has not run yet, with a gradient of
    zeros if none arrives; g always has the value's dtype. An array argument (not a Tensor) is a constant on every rank
    and makes no node.
    """
    if function is None:
        return functools.partial(primitive, collective=collective)

    @functools.wraps(function)
    def apply(*arguments: Any, **static: Any) -> Any:
        substitutes = _substitutes_now()
        if substitutes and apply in substitutes:
            made = substitutes[apply](*arguments, **static)
            if made is not NotImplemented:
                return made
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
        if tracked and _is_recording():
            edges = []
            for i in tracked:
                edges.append((arguments[i], pullbacks[i]))
        if type(value) is tuple:
            if edges is None:
                return tuple(result(one, None) for one in value)
            results, node = several_results(value, edges)
            if collective:
                awaited()[node.number] = node
            return results
        node = result(value, edges)
        if collective and edges:
            awaited()[node.number] = node
        return node

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


def once(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Work shared by several pullbacks of an operation: done by the first that asks, and kept for the others.

    The pullbacks may run at different times (deferred weight gradients). They get the same g, and read-only views of
    the array, or tuple of arrays, that the function returned.
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
    """Records no history, and keeps no memory, for what this thread computes inside."""
    before = _recording.get()
    _recording.set(False)
    try:
        yield
    finally:
        _recording.set(before)


@contextmanager
def computed_by(substitutes: Substitutes) -> Iterator[None]:
    """Makes this thread compute operations by `substitutes` inside: operation -> function of the same arguments.

    Substitutes get the tensors themselves. If one returns NotImplemented, the operation itself is used.
    """
    before = _substitutes.get()
    _substitutes.set(substitutes)
    try:
        yield
    finally:
        _substitutes.set(before)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded (False inside `no_grad`)."""
    return _recording.get()

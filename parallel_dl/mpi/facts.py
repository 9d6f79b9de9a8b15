"""Facts: what a call says of its arguments, so that ranks can compare it; and which arguments cannot be meant.

Both follow from the annotations of the function: `op: str` says "sum", `root: int` says "root 0", `array: Array` says
"float32, shape (4,)". Arguments that are None say nothing. A collective declares what is not so by itself: `along`,
`fits` and the others here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

import numpy as np

from parallel_dl.mpi.buffers import Array, native

Fact = Callable[[Any, Mapping[str, Any], int], Iterable[str]]
"""what is said of (an argument, all arguments by name, this rank)"""


# -- what a collective can declare -----------------------------------------------------------------------------------
def along(axis: str, sizes: str | None = None) -> Fact:
    """Of an array whose length along the axis may differ between the ranks, but must be as the sizes say, if given."""

    def fact(array: Any, arguments: Mapping[str, Any], rank: int) -> Iterable[str]:
        at, shape = arguments[axis], np.shape(array)
        lengths = None if sizes is None else arguments[sizes]
        yield from _kind(array, at)
        if lengths is not None and -len(shape) <= at < len(shape):
            own = lengths[rank] if rank < len(lengths) else None
            if shape[at] != own:  # of this rank alone: all then refuse the call
                yield f"length {shape[at]}"

    return fact


def fits(array: str) -> Fact:
    """Of an array for the result, which has the shape and type of another: nothing, unless it is made otherwise."""

    def fact(out: Array | None, arguments: Mapping[str, Any], rank: int) -> Iterable[str]:
        of = np.asarray(arguments[array])
        if out is not None and (out.shape != of.shape or native(out.dtype) != native(of.dtype)):
            yield f"out {out.dtype} {out.shape}"

    return fact


def in_place(array: Array, arguments: Mapping[str, Any], rank: int) -> Iterable[str]:
    """Of an array that is also the result."""
    yield from _kind(array)
    if not (array.flags.c_contiguous and array.flags.writeable):
        yield "not writable and C-contiguous"


def type_only(array: Any, arguments: Mapping[str, Any], rank: int) -> Iterable[str]:
    """Of an array whose shape may differ between the ranks."""
    yield str(native(np.asarray(array).dtype))


def named_type(dtype: Any, arguments: Mapping[str, Any], rank: int) -> Iterable[str]:
    """Of a dtype: its name, whatever its byte order, since all travel in the same."""
    if dtype is not None:
        yield f"dtype {native(dtype)}"


def known(shape: Any, arguments: Mapping[str, Any], rank: int) -> Iterable[str]:
    """Of a shape that may differ between the ranks: whether it is given."""
    yield "shapes exchanged" if shape is None else "shapes known"


def nothing(*_: Any) -> Iterable[str]:
    """Of what each rank has for itself."""
    return ()


# -- what follows from annotations -----------------------------------------------------------------------------------
def _kind(array: Any, free_axis: int | None = None) -> Iterable[str]:
    """dtype and shape, without the length of the axis along which it may differ between the ranks."""
    array = np.asarray(array)
    lengths: list[Any] = list(array.shape)
    if free_axis is not None and -len(lengths) <= free_axis < len(lengths):
        lengths[free_axis] = "any"
    inner = ", ".join(str(length) for length in lengths) + ("," if len(lengths) == 1 else "")
    return str(native(array.dtype)), f"shape ({inner})"


def _ranges(name: str, slices: Sequence[slice]) -> Iterable[str]:
    yield f"{name} " + " ".join(f"{part.start}:{part.stop}" for part in slices)


def _list(name: str, lengths: Sequence[int]) -> Iterable[str]:
    yield f"{name} {list(lengths) if isinstance(lengths, (list, tuple)) else lengths}"


class _Argument(NamedTuple):
    """Of the arguments with one annotation: their place among the facts, what they say, and which can be meant."""

    place: int
    says: Callable[[str, Any], Iterable[str]]
    can_be: Callable[[Any], bool]
    wanted: str


_WORDS = (str, bytes, type, np.dtype)

_ARGUMENTS: dict[Any, _Argument] = {
    str: _Argument(0, lambda name, value: [value], lambda value: isinstance(value, str), "a word"),
    int: _Argument(
        1,
        lambda name, value: [f"{name.replace('_', ' ')} {value}"],
        lambda value: isinstance(value, (int, np.integer)),
        "a whole number",
    ),
    bool: _Argument(1, lambda name, value: [name if value else f"not {name}"], lambda value: True, ""),
    Sequence[int]: _Argument(1, _list, lambda value: np.ndim(value) == 1, "a list of lengths by rank"),
    tuple[int, ...]: _Argument(1, _list, lambda value: not isinstance(value, _WORDS), "a tuple of lengths"),
    np.ndarray: _Argument(2, lambda name, array: _kind(array), lambda value: not isinstance(value, _WORDS), "an array"),
    Sequence[slice]: _Argument(3, _ranges, lambda value: not isinstance(value, np.ndarray), "a list of slices by rank"),
}


def _argument(annotation: Any) -> tuple[_Argument | None, bool]:
    """What is known of an annotation, and whether it allows None."""
    if get_origin(annotation) is UnionType:
        (annotation,) = (one for one in get_args(annotation) if one is not NoneType)
        return _ARGUMENTS.get(annotation), True
    return _ARGUMENTS.get(annotation), False


def facts_of(annotations: Mapping[str, Any], declared: Mapping[str, Fact]) -> list[tuple[str, Fact]]:
    """(parameter, what it says) in the order in which it is said: words, numbers and sizes, arrays, slices."""
    placed: list[tuple[int, str, Fact]] = []
    for name, annotation in annotations.items():
        argument, _ = _argument(annotation)
        if name in declared:
            placed.append((argument.place if argument else 1, name, declared[name]))
        elif argument is not None:
            placed.append((argument.place, name, _said(name, argument.says)))
    return [(name, fact) for _, name, fact in sorted(placed, key=lambda one: one[0])]


def _said(name: str, says: Callable[[str, Any], Iterable[str]]) -> Fact:
    return lambda value, arguments, rank: () if value is None else says(name, value)


def mistaken(annotations: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """What is said of the first argument that cannot be meant: probably another one was."""
    for name, value in arguments.items():
        argument, optional = _argument(annotations.get(name))
        if argument is None or (value is None and (optional or argument.place == 2)) or argument.can_be(value):
            continue
        found = f"an array of {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)
        return f"{name} must be {argument.wanted}, not {found}"
    return None

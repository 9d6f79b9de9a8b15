"""Facts: what a call says of its arguments, so that ranks can compare it; and which arguments cannot be meant.

Both follow from the annotations of the function: `op: str` says "sum", `root: int` says "root 0", `array: Array` says
"float32, shape (4,)". Arguments that are None say nothing. A collective declares what is not so by itself: `along`,
`fits` and the others here.
"""

from __future__ import annotations

import functools
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
    yield _type_name(np.asarray(array).dtype)


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
@functools.cache
def _type_name(dtype: np.dtype) -> str:
    """A type by name, whatever its byte order: all travel in the same."""
    return str(native(dtype))


def _kind(array: Any, free_axis: int | None = None) -> Iterable[str]:
    """dtype and shape, without the length of the axis along which it may differ between the ranks."""
    array = np.asarray(array)
    shape = str(array.shape)
    if free_axis is not None and -array.ndim <= free_axis < array.ndim:
        lengths = [str(length) for length in array.shape]
        lengths[free_axis] = "any"
        shape = f"({', '.join(lengths)}{',' if array.ndim == 1 else ''})"
    return _type_name(array.dtype), f"shape {shape}"


def _ranges(name: str, slices: Sequence[slice]) -> Iterable[str]:
    yield f"{name} " + " ".join(f"{part.start}:{part.stop}" for part in slices)


def _list(name: str, lengths: Sequence[int]) -> Iterable[str]:
    yield f"{name} {list(lengths) if isinstance(lengths, (list, tuple)) else lengths}"


class _Kind(NamedTuple):
    """Of the arguments with one annotation: their place among the facts, what they say, and which can be meant."""

    place: int
    says: Callable[[str, Any], Iterable[str]]
    can_be: Callable[[Any], bool]
    wanted: str


_WORDS = (str, bytes, type, np.dtype)

_KINDS: dict[Any, _Kind] = {
    str: _Kind(0, lambda name, value: [value], lambda value: isinstance(value, str), "a word"),
    int: _Kind(
        1,
        lambda name, value: [f"{name.replace('_', ' ')} {value}"],
        lambda value: isinstance(value, (int, np.integer)),
        "a whole number",
    ),
    float: _Kind(
        1,
        lambda name, value: [f"{name.replace('_', ' ')} {value}"],
        lambda value: isinstance(value, (int, float, np.integer, np.floating)),
        "a number",
    ),
    bool: _Kind(1, lambda name, value: [name if value else f"not {name}"], lambda value: True, ""),
    Sequence[int]: _Kind(1, _list, lambda value: np.ndim(value) == 1, "a list of lengths by rank"),
    tuple[int, ...]: _Kind(1, _list, lambda value: not isinstance(value, _WORDS), "a tuple of lengths"),
    np.ndarray: _Kind(2, lambda name, array: _kind(array), lambda value: not isinstance(value, _WORDS), "an array"),
    Sequence[slice]: _Kind(3, _ranges, lambda value: not isinstance(value, np.ndarray), "a list of slices by rank"),
}


def _kind_of(annotation: Any) -> _Kind | None:
    """What is known of an annotation, with or without None; nothing of others, such as Any."""
    kinds = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    kind, *more = (one for one in kinds if one is not NoneType)
    return None if more else _KINDS.get(kind)


class Parameters:
    """The parameters of a call, by their annotations and by what is declared of some."""

    def __init__(self, annotations: Mapping[str, Any], declared: Mapping[str, Fact]) -> None:
        self._kinds = {name: kind for name, annotation in annotations.items() if (kind := _kind_of(annotation))}
        # words first, then numbers and sizes, arrays, slices
        said = {name: self._kinds[name].place if name in self._kinds else 1 for name in {**self._kinds, **declared}}
        order = sorted((name for name in annotations if name in said), key=lambda name: said[name])
        self._facts = [(name, declared.get(name) or _said(name, self._kinds[name].says)) for name in order]

    def facts(self, arguments: Mapping[str, Any], rank: int) -> list[str]:
        """What the arguments say."""
        return [fact for name, says in self._facts for fact in says(arguments[name], arguments, rank)]

    def mistake(self, arguments: Mapping[str, Any]) -> str | None:
        """What is said of the first argument that cannot be meant: probably another one was."""
        for name, kind in self._kinds.items():
            value = arguments[name]
            if value is not None and not kind.can_be(value):
                found = f"an array of {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)
                return f"{name} must be {kind.wanted}, not {found}"
        return None


def _said(name: str, says: Callable[[str, Any], Iterable[str]]) -> Fact:
    return lambda value, arguments, rank: () if value is None else says(name, value)

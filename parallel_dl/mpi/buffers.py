"""Arrays as MPI takes them: contiguous, of a type it knows, with the operations that exist for that type."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from parallel_dl.errors import number_of
from parallel_dl.mpi.startup import MPI

Array = np.ndarray

MAX_COUNT = 2**31 - 1  # MPI counts and displacements are C ints

_KNOWN_TO_MPI = frozenset(np.dtype(char) for char in "?bBhHiIlLqQfdgFDG")
_NUMBERS = [np.dtype(char) for char in "bBhHiIlLqQfdg"]
_COMPLEX = [np.dtype(char) for char in "FDG"]
_BOOL = np.dtype(bool)
_HALF = np.dtype(np.float16)


def contiguous(array: Any) -> Array:
    """The array itself if MPI can read it as it is, else a C-contiguous copy in native byte order."""
    array = np.asarray(array, order="C")
    if array.dtype.hasobject:
        raise TypeError(f"arrays of Python objects ({array.dtype}) cannot be sent; use all_gather_object")
    return array if array.dtype.isnative else array.astype(native(array.dtype))


def native(dtype: Any) -> np.dtype:
    """The same type in this machine's byte order, the one in which everything travels."""
    return np.dtype(dtype).newbyteorder("=")


def put(out: Array, result: Array) -> Array:
    """Writes the result into `out`, of any byte and memory order, and returns `out`; ValueError if it does not fit."""
    if out.shape != result.shape or native(out.dtype) != result.dtype:
        raise ValueError(f"out is {out.dtype} {out.shape}, the result is {result.dtype} {result.shape}")
    out[...] = result
    return out


def can_receive(out: Array, array: Array) -> bool:
    """Whether MPI can write straight into `out` what has the shape and type of `array`, which it reads meanwhile."""
    same = out.shape == array.shape and out.dtype == array.dtype and out.flags.c_contiguous
    return same and not np.may_share_memory(out, array)


def on_the_wire(array: Array) -> Array:
    """A flat view of a contiguous array, in a type that MPI knows: float16 as uint16, records as bytes, ..."""
    flat = array.reshape(-1)
    if array.dtype in _KNOWN_TO_MPI:
        return flat
    return flat.view(f"u{array.itemsize}" if array.itemsize in (1, 2, 4, 8) else np.uint8)


def units(dtype: np.dtype) -> int:
    """How many elements on the wire make one element of `dtype`."""
    return 1 if dtype in _KNOWN_TO_MPI or dtype.itemsize in (1, 2, 4, 8) else dtype.itemsize


def pieces(flat: Array) -> list[Array]:
    """`flat` cut into parts that MPI can count; always at least one, so that an empty array takes part too."""
    return [flat[start : start + MAX_COUNT] for start in range(0, max(len(flat), 1), MAX_COUNT)]


def check_count(call: str, count: int) -> None:
    """Every rank calls it with the same count, before anything is sent: all raise, or none."""
    if count > MAX_COUNT:
        raise OverflowError(f"{call} of {count} values: MPI counts at most {MAX_COUNT} in one call; cut it into parts")


def along(array: Array, axis: int, part: slice) -> Array:
    """A view of the part along `axis`."""
    return array[(slice(None),) * axis + (part,)]


def with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    """The shape with another length along `axis`."""
    return (*shape[:axis], length, *shape[axis + 1 :])


def product(shape: Sequence[int], without: Sequence[int] = ()) -> int:
    """Of the lengths along all axes but some."""
    return math.prod(length for axis, length in enumerate(shape) if axis not in without)


def row(array: Array) -> int:
    """Values on the wire per row, a row being what one index of axis 0 selects."""
    return product(array.shape[1:]) * units(array.dtype)


def axis_first(array: Array, axis: int) -> Array:
    """Contiguous, with `axis` moved to the front: slices along it are then contiguous too."""
    return contiguous(array if axis == 0 else np.moveaxis(array, axis, 0))


def axis_back(array: Array, axis: int) -> Array:
    """The inverse of `axis_first`, contiguous again."""
    return array if axis == 0 else np.asarray(np.moveaxis(array, 0, axis), order="C")


def block_shapes(shape: Sequence[int], axis: int, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """The shapes of slices of these sizes along `axis`."""
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def blocks(shapes: Sequence[tuple[int, ...]], dtype: np.dtype) -> tuple[Array, list[Array]]:
    """A flat array, and the arrays of these shapes that lie in it one after the other."""
    ends = list(accumulate(map(math.prod, shapes), initial=0))
    flat = np.empty(ends[-1], dtype)
    return flat, [flat[start:stop].reshape(shape) for shape, (start, stop) in zip(shapes, pairwise(ends))]


def slices_along(array: Array, axis: int, sizes: Sequence[int]) -> list[Array]:
    """Views of the slices of these sizes along `axis`."""
    ends = accumulate(sizes, initial=0)
    return [array[(slice(None),) * axis + (slice(start, stop),)] for start, stop in pairwise(ends)]


def normal_axis(axis: int, ndim: int) -> int:
    """`axis` counted from the front."""
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} of an array with {number_of(ndim, 'axis')}")
    return axis % ndim


def counts_and_starts(sizes: Sequence[int], scale: int) -> tuple[list[int], list[int]]:
    """MPI's counts and displacements for `sizes` rows of `scale` values each."""
    counts = [size * scale for size in sizes]
    starts = [0] * len(counts)
    for index in range(1, len(counts)):
        starts[index] = starts[index - 1] + counts[index - 1]
    return counts, starts


# -- operations ----------------------------------------------------------------------------------------------------
def _table() -> dict[str, dict[np.dtype, Any]]:
    """op -> dtype -> MPI operation, for what MPI does directly."""
    table: dict[str, dict[np.dtype, Any]] = {
        "sum": dict.fromkeys(_NUMBERS + _COMPLEX, MPI.SUM),
        "prod": dict.fromkeys(_NUMBERS + _COMPLEX, MPI.PROD),
        "max": dict.fromkeys(_NUMBERS, MPI.MAX) | {_BOOL: MPI.LOR},
        "min": dict.fromkeys(_NUMBERS, MPI.MIN) | {_BOOL: MPI.LAND},
        "or": {_BOOL: MPI.LOR},
        "and": {_BOOL: MPI.LAND},
    }
    for dtype in _NUMBERS:
        if dtype.kind == "f":
            del table["max"][dtype], table["min"][dtype]
    return table


OPERATIONS = _table()


class Reduction(NamedTuple):
    """What MPI calculates, and on what: of contiguous values `encode` makes a flat array, `decode` is the way back.

    No operation is a Python function: MPI would call it, and an exception in it (Ctrl-C) could not get out.
    """

    operation: Any
    compute: np.dtype  # what is calculated in: float16 is added up in float32
    encode: Callable[..., Array]  # (array, copy=True)
    decode: Callable[[Array, Array], Array]  # (result, an array of the shape and type wanted)


@functools.cache
def reduction_for(op: str, dtype: np.dtype) -> Reduction:
    """How MPI reduces arrays of that type; ValueError or TypeError if it does not."""
    if op not in OPERATIONS:
        raise ValueError(f"op {op!r}: expected one of {', '.join(OPERATIONS)}")
    compute = np.dtype(np.float32) if dtype == _HALF else dtype
    if compute.kind == "f" and op in ("max", "min"):
        return _nan_propagating(op, compute)
    operation = OPERATIONS[op].get(compute)
    if operation is None:
        raise TypeError(f"op {op!r} is not defined for {dtype}")
    return Reduction(operation, compute, functools.partial(_flat, compute), _like)


def _flat(dtype: np.dtype, array: Array, copy: bool = True) -> Array:
    return array.astype(dtype, copy=copy).reshape(-1)


def _like(result: Array, wanted: Array) -> Array:
    return result.reshape(wanted.shape).astype(wanted.dtype, copy=False)


@functools.cache
def _nan_propagating(op: str, dtype: np.dtype) -> Reduction:
    """max or min in which a NaN anywhere gives NaN: MPI's own give ranks different answers then.

    Floats become whole numbers of the same order, NaN the most extreme one. Where no whole number has as many bits
    (long double) there are two halves: the values, with an infinity for NaN, and flags.
    """
    operation = MPI.MAX if op == "max" else MPI.MIN
    if dtype.itemsize > 8:
        sign = 1 if op == "max" else -1

        def with_flags(array: Array, copy: bool = True) -> Array:
            flat = _flat(dtype, array)
            flags = sign * np.isnan(flat).astype(dtype)
            flat[flags != 0] = -sign * np.inf
            return np.concatenate([flat, flags])

        def without_flags(result: Array, wanted: Array) -> Array:
            values, flags = np.split(result, 2)
            return _like(np.where(flags == 0, values, np.nan), wanted)

        return Reduction(operation, dtype, with_flags, without_flags)

    whole = np.dtype(f"i{dtype.itemsize}")
    largest, smallest = np.iinfo(whole).max, np.iinfo(whole).min

    def flip(bits: Array) -> Array:
        """Whole numbers in the order of the floats with these bits, or the other way round: its own inverse."""
        return bits ^ ((bits >> (8 * whole.itemsize - 1)) & largest)

    def encode(array: Array, copy: bool = True) -> Array:
        flat = _flat(dtype, array, copy=False)
        ordered = flip(flat.view(whole))
        ordered[np.isnan(flat)] = largest if op == "max" else smallest
        return ordered

    return Reduction(operation, dtype, encode, lambda result, wanted: _like(flip(result).view(dtype), wanted))

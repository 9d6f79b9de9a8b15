"""Arrays as MPI takes them: contiguous, of a type it knows, with the operations that exist for that type."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

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
def _elementwise(function: Any) -> Any:
    """An MPI operation from a NumPy one: MPI's own MAX and MIN give ranks different answers where one has a NaN."""

    def combine(received: Any, result: Any, datatype: Any) -> None:
        dtype = np.dtype(datatype.tocode())
        b = np.frombuffer(result, dtype)
        function(np.frombuffer(received, dtype), b, out=b)

    return MPI.Op.Create(combine, commute=True)


@functools.cache
def _nan_propagating(op: str) -> Any:
    return _elementwise(np.maximum if op == "max" else np.minimum)


def _table() -> dict[str, dict[np.dtype, Any]]:
    """op -> dtype -> MPI operation, for what MPI does directly; None stands for an operation of our own."""
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


def operation_for(op: str, dtype: np.dtype) -> tuple[Any, np.dtype]:
    """The MPI operation, and the type to calculate in: float16 is added up in float32."""
    if op not in OPERATIONS:
        raise ValueError(f"op {op!r}: valid are {', '.join(OPERATIONS)}")
    compute = np.dtype(np.float32) if dtype == _HALF else dtype
    if compute.kind == "f" and op in ("max", "min"):
        return _nan_propagating(op), compute
    operation = OPERATIONS[op].get(compute)
    if operation is None:
        raise TypeError(f"op {op!r} is not defined for {dtype}")
    return operation, compute

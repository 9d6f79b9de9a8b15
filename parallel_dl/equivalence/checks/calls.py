"""Compares a communicator's calls on arrays with their definitions, on whole numbers, so that every sum is exact.

Calls made by differentiable movements are checked with these (`movements`); this checks the types, operations and
buffers that movements leave out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parallel_dl import partition
from parallel_dl.mpi import Communicator

Arrays = list[np.ndarray]
Call = tuple[str, Callable[[], Any], Any]
"""what it is, what it gives on this rank, and what it should give there; None for nothing"""

SHAPE = (3, 5)
OPERATIONS: dict[str, Callable[[Arrays], np.ndarray]] = {
    "sum": lambda arrays: np.sum(arrays, axis=0, dtype=arrays[0].dtype),
    "prod": lambda arrays: np.prod(arrays, axis=0, dtype=arrays[0].dtype),
    "max": lambda arrays: np.max(arrays, axis=0),
    "min": lambda arrays: np.min(arrays, axis=0),
    "or": lambda arrays: np.any(arrays, axis=0),
    "and": lambda arrays: np.all(arrays, axis=0),
}
TYPES = {"float64": ("sum", "prod", "max", "min"), "float32": ("sum", "max"), "float16": ("sum",)}
TYPES |= {"int64": ("sum", "min"), "bool": ("or", "and")}


def lopsided(length: int, ranks: int) -> list[int]:
    """Lengths of slices by rank, the first of them empty."""
    return [0, *partition.shares(length, ranks - 1)] if ranks > 1 else [length]


def wrong_call(comm: Communicator) -> str | None:
    """The first call with a wrong result, or None; the same on every rank of `comm`. All ranks together."""
    for name, run, expected in calls(comm):
        found = run()
        same = found is None if expected is None else _are_same(found, expected)
        told = comm.all_gather_object(None if same else f"{name}: gives a wrong array on rank {comm.rank}")
        wrong = next((of_rank for of_rank in told if of_rank is not None), None)
        if wrong is not None:
            return wrong
    return None


def _are_same(found: Any, expected: np.ndarray) -> bool:
    found = np.asarray(found)
    return found.dtype == expected.dtype and np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")


def calls(comm: Communicator) -> Iterator[Call]:
    """All of them; every rank knows every rank's arrays."""
    yield from _reductions(comm)
    yield from _into_buffers(comm)
    if comm.size & (comm.size - 1) == 0:
        arrays = _arrays(comm, "float64")
        own, total = arrays[comm.rank], OPERATIONS["sum"](arrays)
        yield "all_reduce in a tree", lambda: comm.in_tree().all_reduce(own), total
        sizes = lopsided(SHAPE[1], comm.size)
        first = sum(sizes[: comm.rank])
        rows = total[:, first : first + sizes[comm.rank]]
        yield "reduce_scatter in a tree", lambda: comm.in_tree().reduce_scatter(own, 1, sizes), rows
    yield from _messages(comm)


def _arrays(comm: Communicator, dtype: str) -> Arrays:
    """Every rank's: small whole numbers; as floats, with a NaN on the first rank and an infinity on the last."""
    arrays = [np.random.default_rng([5, rank]).integers(-3, 4, SHAPE).astype(dtype) for rank in range(comm.size)]
    if np.dtype(dtype).kind == "f":
        arrays[0][0, 0], arrays[-1][2, 4] = np.nan, np.inf
    return arrays


def _reductions(comm: Communicator) -> Iterator[Call]:
    root = comm.size - 1
    for dtype, operations in TYPES.items():
        arrays = _arrays(comm, dtype)
        for op in operations:
            total, own = OPERATIONS[op](arrays), arrays[comm.rank]
            yield f"all_reduce ({op}, {dtype})", functools.partial(comm.all_reduce, own, op), total
            mine = total if comm.rank == root else None
            yield f"reduce ({op}, {dtype})", functools.partial(comm.reduce, own, root, op), mine


def _into_buffers(comm: Communicator) -> Iterator[Call]:
    """Sums into the caller's arrays: these must be what is returned, and their old values are not added."""
    for dtype in ("float64", "float32"):
        arrays = _arrays(comm, dtype)
        total = OPERATIONS["sum"](arrays)
        for what, source, out in (
            ("another array", arrays[comm.rank], np.full(SHAPE, 7, dtype)),
            ("the array itself", (itself := arrays[comm.rank].copy()), itself),
            ("a part of an array", arrays[comm.rank], np.full((SHAPE[0], 9), 7, dtype)[:, 2:7]),
            ("an array, from a transposed one", np.asfortranarray(arrays[comm.rank]), np.full(SHAPE, 7, dtype)),
        ):
            yield f"all_reduce into {what} ({dtype})", _into(comm, source, out), np.stack([total, total])
        yield f"start_all_reduce ({dtype})", _started(comm, arrays[comm.rank].copy()), total


def _into(comm: Communicator, source: np.ndarray, out: np.ndarray) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        returned = comm.all_reduce(source, out=out)
        return np.stack([returned, out])

    return run


def _started(comm: Communicator, array: np.ndarray) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        comm.start_all_reduce(array).wait()
        return array

    return run


def _messages(comm: Communicator) -> Iterator[Call]:
    arrays = _arrays(comm, "float64")
    own, before, after = (arrays[(comm.rank + step) % comm.size] for step in (0, -1, 1))
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size

    def with_tags() -> np.ndarray:
        """Two messages to the next rank; they are received in the other order."""
        receives = [comm.ireceive(np.empty(SHAPE), source, tag) for tag in (4, 3)]
        sends = [comm.isend(factor * own, to, tag) for factor, tag in ((1.0, 3), (2.0, 4))]
        found = [receive.wait() for receive in receives]
        for send in sends:
            send.wait()
        return np.stack(found)

    def blocking() -> np.ndarray:
        pending = comm.isend(own, source)
        found = comm.receive(to, SHAPE, np.float64)
        pending.wait()
        return found

    root = comm.size - 1
    yield "isend, ireceive", with_tags, np.stack([2 * before, before])
    yield "receive", blocking, after
    given = own if comm.rank == root else None
    yield "broadcast, shape given", lambda: comm.broadcast(given, root, SHAPE, np.float64), arrays[root]
    yield "broadcast_object", lambda: comm.broadcast_object(comm.rank, root), np.array(root)
    yield "all_gather_object", lambda: comm.all_gather_object(comm.rank), np.arange(comm.size)

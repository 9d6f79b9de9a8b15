"""The transport: the calls by which everything gets to other ranks, and what each of them passes.

These are calls of mpi4py's communicators. Whatever else offers them can carry a `Communicator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from parallel_dl.mpi.startup import MPI
from parallel_dl.watchdog import unwatched

Array = np.ndarray
Slices = list[Any]
"""of a flat array: [array, counts by rank, starts by rank, None]"""


class Transport(Protocol):
    """What a `Communicator` uses of an mpi4py communicator.

    Arrays are contiguous, of a type that MPI knows, and have at most 2^31 - 1 values. `sent` may be MPI.IN_PLACE: what
    is received replaces it. A request has `Wait`, `Test` and `Get_status`. Small letters: objects, pickled.
    """

    rank: int
    size: int
    name: str

    # -- communicators
    def Dup(self) -> Any: ...
    def Split(self, color: int, key: int) -> Any: ...
    def Split_type(self, split_type: int) -> Any: ...
    def Free(self) -> None: ...
    def Barrier(self) -> None: ...

    # -- messages
    def Send(self, buf: Array, dest: int, tag: int) -> None: ...
    def Recv(self, buf: Array, source: int, tag: int, status: Any) -> None: ...
    def Isend(self, buf: Array, dest: int, tag: int) -> Any: ...
    def Irecv(self, buf: Array, source: int, tag: int) -> Any: ...

    # -- collectives
    def Allreduce(self, sent: Any, received: Array, op: Any) -> None: ...
    def Iallreduce(self, sent: Any, received: Array, op: Any) -> Any: ...
    def Reduce(self, sent: Any, received: Array | None, op: Any, root: int) -> None: ...
    def Reduce_scatter(self, sent: Array, received: Array, counts: Sequence[int], op: Any) -> None: ...
    def Allgatherv(self, sent: Array, received: Slices) -> None: ...
    def Gatherv(self, sent: Array, received: Slices | None, root: int) -> None: ...
    def Scatterv(self, sent: Slices | None, received: Array, root: int) -> None: ...
    def Alltoallv(self, sent: Slices, received: Slices) -> None: ...
    def Bcast(self, buf: Array, root: int) -> None: ...
    def Iallgather(self, sent: Array, received: Array) -> Any: ...

    # -- objects
    def sendrecv(self, sent: Any, dest: int, tag: int, buf: None, source: int, tag_received: int) -> Any: ...
    def allgather(self, sent: Any) -> list[Any]: ...
    def allreduce(self, sent: Any, op: Any) -> Any: ...
    def bcast(self, thing: Any, root: int) -> Any: ...


def plain(mpi: Any) -> Any:
    """The same communicator as mpi4py alone has it: nothing delays its calls, and nobody watches them."""
    if not isinstance(mpi, MPI.Intracomm):
        return mpi
    return unwatched(mpi if type(mpi) is MPI.Intracomm else MPI.Intracomm(mpi))


# -- what is passed --------------------------------------------------------------------------------------------------
class Passed(NamedTuple):
    """What one call has passed to other ranks: its payload, not what the transport makes of it."""

    call: str
    messages: int
    values: int
    bytes: int
    shared_memory_bytes: int = 0


def _values(call: str, array: Array, values: int) -> Passed:
    return Passed(call, 1, values, values * array.itemsize)


def _objects(*things: Any) -> Passed:
    return Passed("object", 1, 0, sum(len(MPI.pickle.dumps(thing)) for thing in things))


def _is_other(mpi: Transport, rank: int) -> bool:
    return rank not in (MPI.PROC_NULL, mpi.rank)


# call of the transport -> what it has passed, of (transport, result, its arguments); None for nothing. What is not here
# passes nothing that is counted.
_PASSED: dict[str, Callable[..., Passed | None]] = {
    "Send": lambda mpi, _, sent, to, tag=0: _values("send", sent, sent.size) if _is_other(mpi, to) else None,
    "Isend": lambda mpi, _, sent, to, tag=0: _values("isend", sent, sent.size) if _is_other(mpi, to) else None,
    "Allreduce": lambda mpi, _, sent, received, op: _values("all_reduce", received, received.size),
    "Iallreduce": lambda mpi, _, sent, received, op: _values("all_reduce", received, received.size),
    # the root's `sent` is IN_PLACE
    "Reduce": lambda mpi, _, sent, received, op, root: (
        _values("reduce", sent, sent.size) if received is None else _values("reduce", received, received.size)
    ),
    "Reduce_scatter": lambda mpi, _, sent, received, counts, op: _values(
        "reduce_scatter", sent, sent.size - received.size
    ),
    "Allgatherv": lambda mpi, _, sent, received: _values("all_gather", sent, sum(received[1]) - sent.size),
    "Gatherv": lambda mpi, _, sent, received, root: _values("gather", sent, 0 if mpi.rank == root else sent.size),
    "Scatterv": lambda mpi, _, sent, received, root: _values(
        "scatter", received, sum(sent[1]) - received.size if mpi.rank == root else 0
    ),
    "Alltoallv": lambda mpi, _, sent, received: _values("all_to_all", sent[0], sum(sent[1]) - sent[1][mpi.rank]),
    "Bcast": lambda mpi, _, array, root: _values("broadcast", array, array.size if mpi.rank == root else 0),
    "sendrecv": lambda mpi, _, sent, to, *others: _objects(sent) if _is_other(mpi, to) else None,
    "allgather": lambda mpi, result, sent: _objects(*result[: mpi.rank], *result[mpi.rank + 1 :]),
    "bcast": lambda mpi, result, thing, root: _objects(*([result] if mpi.rank == root else [])),
}


class Heard:
    """A transport that tells of all that was passed: `hear` gets it, as long as `is_heard()`."""

    def __init__(self, mpi: Transport, is_heard: Callable[[], bool], hear: Callable[[Passed], None]) -> None:
        self._mpi, self._is_heard, self._hear = mpi, is_heard, hear

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._mpi, name)
        passed = _PASSED.get(name)
        if passed is None:
            return call

        def heard(*arguments: Any) -> Any:
            result = call(*arguments)
            if self._is_heard() and (said := passed(self._mpi, result, *arguments)) is not None:
                self._hear(said)
            return result

        self.__dict__[name] = heard  # found at once the next time
        return heard

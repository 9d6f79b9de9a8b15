"""The ledger: how many messages and bytes each rank passes to MPI, by axis, layer and direction.

A communicator made with `Communicator(mpi, ledger=Ledger())` makes the same MPI calls as any other, with the same
results, but its mpi4py communicator is a `Counted`, which enters each call once it is made. So what is counted is what
MPI was given (float16 is summed as float32, four bytes a value), and not what a formula expects:

| `call`           | made by                                 | values entered                                        |
|------------------|-----------------------------------------|-------------------------------------------------------|
| `send`, `isend`  | send, isend, shift, exchange_slices and | those sent                                            |
|                  | return_slices                           |                                                       |
| `all_reduce`     | all_reduce, start_all_reduce            | the array, on every rank                              |
| `reduce`         | reduce                                  | the array, on every rank, also on the root            |
| `reduce_scatter` | reduce_scatter                          | the array without the own part                        |
| `all_gather`     | all_gather                              | the result without the own part                       |
| `all_to_all`     | all_to_all                              | the array without the own part                        |
| `gather`         | gather                                  | the own part; on the root 0                           |
| `scatter`        | scatter                                 | on the root the array without its own part; else 0    |
| `broadcast`      | broadcast                               | on the root the array; else 0                         |
| `object`         | pickles: objects; lengths, shapes and   | 0; `bytes` are those of the pickles, by the rule of   |
|                  | dtypes that were not given              | `send`, `all_gather` or `broadcast`                   |
| `window`         | SharedWindow.all_reduce                 | 0; `shared_memory_bytes` are those of the own `local` |

For a collective that is its payload, not what MPI's algorithm makes of it: a ring all-reduce sends 2 (P-1)/P of it.

One call of MPI is one message (a sum in the window is none), even on a rank that enters 0 values; an array with more
values than MPI can count is several. Not counted are receives, barriers, what the checked mode compares, the byte by
which the root of a broadcast says that its array is as announced, what making communicators and windows takes, what a
rank sends to itself, and all that happens on a communicator of one rank. Values are of the dtype that MPI is given, so
`bytes` is `values` times its size; what MPI has no type for (records, strings) travels as bytes, and each is a value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from parallel_dl.autograd import is_in_backward
from parallel_dl.errors import number_of
from parallel_dl.mpi.startup import MPI

if TYPE_CHECKING:
    from parallel_dl.mpi.communicator import Communicator


@dataclasses.dataclass(frozen=True)
class LedgerRow:
    """What one rank passed to MPI along one axis, for one layer, in one direction, by one kind of call."""

    rank: int
    axis: str
    """the mesh axis, "pipe", "data" or "model"; "world" for a communicator that runs along none of them"""
    layer: str
    """what `Communicator.labelled` was given; "" without"""
    direction: str
    """which pass it was part of, "forward" or "backward"; by default "backward" is while autograd's backward runs"""
    call: str
    messages: int
    values: int
    bytes: int
    shared_memory_bytes: int
    """summed in shared memory, where nothing is sent"""


class Ledger:
    """The counts of this rank, from the communicators that were made with this ledger, or from one that was.

    `rank` is what the rows name this rank; by default its rank among all that were started together. It counts inside
    `counting()` only: set-up and evaluation are not communication of the training.
    """

    def __init__(self, rank: int | None = None) -> None:
        self.rank: int = MPI.COMM_WORLD.rank if rank is None else rank
        self._depth = 0
        # (axis, layer, direction, call) -> messages, values, bytes, shared_memory_bytes
        self._counts: dict[tuple[str, str, str, str], list[int]] = {}

    def __repr__(self) -> str:
        return f"Ledger(rank {self.rank}, {number_of(len(self._counts), 'row')})"

    @property
    def is_counting(self) -> bool:
        """Whether this is inside `counting()`."""
        return self._depth > 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Calls made inside are counted. It may be nested."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def clear(self) -> None:
        """Forgets all counts."""
        self._counts.clear()

    def rows(self) -> list[LedgerRow]:
        """The counts so far, in the order in which they were first entered."""
        return [LedgerRow(self.rank, *key, *counts) for key, counts in self._counts.items()]

    def enter(
        self,
        axis: str,
        layer: str,
        direction: str,
        call: str,
        messages: int,
        values: int,
        bytes: int,
        shared_memory_bytes: int = 0,
    ) -> None:
        """Adds to the counts, whether it is counting or not."""
        counts = self._counts.setdefault((axis, layer, direction, call), [0, 0, 0, 0])
        counts[0] += messages
        counts[1] += values
        counts[2] += bytes
        counts[3] += shared_memory_bytes


def gather_rows(comm: Communicator, ledger: Ledger) -> list[LedgerRow]:
    """The rows of the ledgers of all ranks of `comm`, on every rank, by rank. Collective; not counted itself."""
    comm.announce("gather_rows")
    rows = MPI.Intracomm(comm.mpi).allgather(ledger.rows())
    return sorted((row for of_rank in rows for row in of_rank), key=lambda row: row.rank)


class Counted(MPI.Intracomm):
    """The same communicator as the one it is made from, which enters what is passed to it in `ledger`.

    It knows the calls of `Communicator`, with the arguments that it gives: NumPy arrays, or lists that begin with one.
    mpi4py makes duplicates and splits of it of the same class; they have no ledger and count nothing.
    """

    ledger: Ledger | None = None
    axis = "world"
    layer = ""
    direction: str | None = None  # None: as it is at the time of the call

    def _enter(self, call: str, messages: int, values: int, bytes: int, shared_memory_bytes: int = 0) -> None:
        if self.ledger is not None:
            direction = self.direction or ("backward" if is_in_backward() else "forward")
            self.ledger.enter(self.axis, self.layer, direction, call, messages, values, bytes, shared_memory_bytes)

    @property
    def _is_counting(self) -> bool:
        return self.ledger is not None and self.ledger.is_counting and self.size > 1

    def _enter_values(self, call: str, array: np.ndarray, values: int) -> None:
        self._enter(call, 1, values, values * array.itemsize)

    def _enter_objects(self, *objects: Any) -> None:
        self._enter("object", 1, 0, sum(len(MPI.pickle.dumps(thing)) for thing in objects))

    # -- from one rank to another ----------------------------------------------------------------------------------
    def Send(self, buf: Any, dest: int, tag: int = 0) -> None:
        super().Send(buf, dest, tag)
        if self._is_counting and dest not in (MPI.PROC_NULL, self.rank):
            self._enter_values("send", buf, buf.size)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> MPI.Request:
        request = super().Isend(buf, dest, tag)
        if self._is_counting and dest not in (MPI.PROC_NULL, self.rank):
            self._enter_values("isend", buf, buf.size)
        return request

    # -- reductions ------------------------------------------------------------------------------------------------
    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> None:
        super().Allreduce(sendbuf, recvbuf, op)
        if self._is_counting:
            self._enter_values("all_reduce", recvbuf, recvbuf.size)

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> MPI.Request:
        request = super().Iallreduce(sendbuf, recvbuf, op)
        if self._is_counting:
            self._enter_values("all_reduce", recvbuf, recvbuf.size)
        return request

    def Reduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, root: int = 0) -> None:
        super().Reduce(sendbuf, recvbuf, op, root)
        if self._is_counting:
            array = sendbuf if recvbuf is None else recvbuf  # the root's sendbuf is IN_PLACE
            self._enter_values("reduce", array, array.size)

    def Reduce_scatter(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None = None, op: MPI.Op = MPI.SUM
    ) -> None:
        super().Reduce_scatter(sendbuf, recvbuf, recvcounts, op)
        if self._is_counting:
            self._enter_values("reduce_scatter", sendbuf, sendbuf.size - recvbuf.size)

    # -- slices ----------------------------------------------------------------------------------------------------
    def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None:
        super().Allgatherv(sendbuf, recvbuf)
        if self._is_counting:
            self._enter_values("all_gather", sendbuf, sum(recvbuf[1]) - sendbuf.size)

    def Gatherv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        super().Gatherv(sendbuf, recvbuf, root)
        if self._is_counting:
            self._enter_values("gather", sendbuf, 0 if self.rank == root else sendbuf.size)

    def Scatterv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        super().Scatterv(sendbuf, recvbuf, root)
        if self._is_counting:
            self._enter_values("scatter", recvbuf, sum(sendbuf[1]) - recvbuf.size if self.rank == root else 0)

    def Alltoallv(self, sendbuf: Any, recvbuf: Any) -> None:
        super().Alltoallv(sendbuf, recvbuf)
        if self._is_counting:
            array, counts = sendbuf[:2]
            self._enter_values("all_to_all", array, sum(counts) - counts[self.rank])

    def Bcast(self, buf: Any, root: int = 0) -> None:
        super().Bcast(buf, root)
        if self._is_counting:
            self._enter_values("broadcast", buf, buf.size if self.rank == root else 0)

    # -- Python objects --------------------------------------------------------------------------------------------
    def sendrecv(self, sendobj: Any, dest: int, *arguments: Any, **options: Any) -> Any:
        received = super().sendrecv(sendobj, dest, *arguments, **options)
        if self._is_counting and dest not in (MPI.PROC_NULL, self.rank):
            self._enter_objects(sendobj)
        return received

    def allgather(self, sendobj: Any) -> list[Any]:
        objects = super().allgather(sendobj)
        if self._is_counting:
            self._enter_objects(*objects[: self.rank], *objects[self.rank + 1 :])
        return objects

    def bcast(self, obj: Any, root: int = 0) -> Any:
        received = super().bcast(obj, root)
        if self._is_counting:
            self._enter_objects(*([received] if self.rank == root else []))
        return received


def counted(mpi: MPI.Intracomm, ledger: Ledger, axis: str, layer: str = "", direction: str | None = None) -> Counted:
    """A `Counted` of the same MPI communicator, whose calls are entered under these names."""
    new = type(mpi)(mpi) if isinstance(mpi, Counted) else Counted(mpi)
    new.ledger, new.axis, new.layer, new.direction = ledger, axis, layer, direction
    return new


def enter_shared_memory(mpi: MPI.Intracomm, bytes: int) -> None:
    """Enters a sum in shared memory, to which this rank has given so many bytes, if `mpi` is counted."""
    if isinstance(mpi, Counted) and mpi._is_counting:
        mpi._enter("window", 0, 0, 0, bytes)

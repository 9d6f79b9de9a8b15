"""The ledger: how many messages and bytes each rank passes to MPI, by axis, layer and direction.

A communicator made with `Communicator(mpi, ledger=Ledger())` makes the same MPI calls as any other, with the same
results; each call of the transport is entered once it is made. So what is counted is what MPI was given (float16 is
summed as float32, four bytes a value), and not what a formula expects (`transport` has the rules):

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
from collections.abc import Iterator
from contextlib import contextmanager

from parallel_dl.autograd import is_in_backward
from parallel_dl.errors import number_of
from parallel_dl.mpi.calls import Caller, Observer
from parallel_dl.mpi.startup import MPI
from parallel_dl.mpi.transport import Passed, plain


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


class Ledger(Observer):
    """The counts of this rank, over the communicators made with this ledger, or derived from one of these.

    `rank` is this rank's number in the rows; by default its rank among all ranks started together. It counts only
    inside `counting()`: set-up and evaluation are not part of training.
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

    @property
    def is_listening(self) -> bool:  # type: ignore[override]
        """The same: what is passed outside `counting()` is not entered."""
        return self._depth > 0

    def passed(self, comm: Caller, passed: Passed) -> None:
        """Enters what was `passed` under the label of `comm`."""
        direction = comm.direction or ("backward" if is_in_backward() else "forward")
        self.enter(comm.axis, comm.layer, direction, *passed)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts the calls made inside. It may be nested."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def clear(self) -> None:
        """Clears all counts."""
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
        """Adds to the counts, whether counting or not; the arguments are those of a `LedgerRow`.

        `messages`, `values`, `bytes` and `shared_memory_bytes` are added under `axis`, `layer`, `direction` and `call`.
        """
        counts = self._counts.setdefault((axis, layer, direction, call), [0, 0, 0, 0])
        counts[0] += messages
        counts[1] += values
        counts[2] += bytes
        counts[3] += shared_memory_bytes


def gather_rows(comm: Caller, ledger: Ledger) -> list[LedgerRow]:
    """The rows of the ledgers of all ranks of `comm`, on every rank, by rank. Collective; not counted itself."""
    comm.announce("gather_rows")
    rows = plain(comm.mpi).allgather(ledger.rows())
    return sorted((row for of_rank in rows for row in of_rank), key=lambda row: row.rank)

"""The timeline: when each call of a rank began and ended, and what it passed to other ranks; kept in memory.

A call inside another, such as the sends of an exchange, and the wait for one that was started have spans of their own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from parallel_dl.mpi.calls import Call, Caller, Observer
from parallel_dl.mpi.startup import MPI
from parallel_dl.mpi.transport import Passed


@dataclasses.dataclass
class Span:
    """One call of one rank."""

    rank: int
    call: str
    communicator: str
    start: float
    """seconds, by the clock of the timeline"""
    end: float | None = None
    """None until it has ended"""
    bytes: int = 0
    """passed to other ranks, by the ledger's rules, also by the calls inside it"""
    depth: int = 0
    """number of calls that it is part of"""
    layer: str = ""
    """what `Communicator.labelled` was given"""


class Timeline(Observer):
    """The spans of this rank's calls, in the order in which they began.

    `rank` is this rank's number in the spans, by default its rank among all ranks started together. `clock` returns
    seconds; by default it is Python's monotonic clock, which on Linux is shared by all processes of a machine.
    """

    def __init__(self, rank: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.rank: int = MPI.COMM_WORLD.rank if rank is None else rank
        self.spans: list[Span] = []
        self._clock = clock
        self._open: list[tuple[Call, Span]] = []

    def begin(self, call: Call) -> None:
        comm = call.comm
        span = Span(self.rank, call.name, comm.name, self._clock(), depth=len(self._open), layer=comm.layer)
        self.spans.append(span)
        self._open.append((call, span))

    def end(self, call: Call) -> None:
        ended = self._clock()
        opened, span = self._open.pop()
        assert opened is call
        span.end = ended

    def passed(self, comm: Caller, passed: Passed) -> None:
        for _, span in self._open:
            span.bytes += passed.bytes

    def clear(self) -> None:
        """Clears the spans that have ended."""
        self.spans = [span for span in self.spans if span.end is None]

"""The flight recorder: the last calls of a rank, which show where it was when it failed or hung."""

from __future__ import annotations

import dataclasses
from collections import deque

from parallel_dl.mpi.calls import Call, Observer

STARTED, FINISHED, FAILED = "started", "finished", "failed"


@dataclasses.dataclass
class RecordedCall:
    """One call: what it was, on which communicator, with which facts, and how far it came."""

    number: int
    """counted from 1 over all calls of the rank"""
    call: str
    communicator: str
    facts: list[str]
    state: str = STARTED
    """STARTED, FINISHED or FAILED"""

    def __str__(self) -> str:
        said = f" ({', '.join(self.facts)})" if self.facts else ""
        return f"#{self.number} {self.call}{said} on {self.communicator!r}: {self.state}"


class FlightRecorder(Observer):
    """Keeps the last `length` calls of the communicators it observes, oldest first; see `calls`."""

    def __init__(self, length: int = 64) -> None:
        self._ring: deque[RecordedCall] = deque(maxlen=length)
        self._open: list[RecordedCall] = []
        self._count = 0

    def begin(self, call: Call) -> None:
        self._count += 1
        recorded = RecordedCall(self._count, call.name, call.comm.name, call.facts)
        self._ring.append(recorded)
        self._open.append(recorded)

    def end(self, call: Call) -> None:
        self._open.pop().state = FAILED if call.failed else FINISHED

    @property
    def calls(self) -> list[RecordedCall]:
        """The last ones, oldest first."""
        return list(self._ring)

    def text(self) -> str:
        """One line for each of the last calls, oldest first."""
        return "\n".join(map(str, self._ring))

"""How long the three schemes take on a virtual clock, and how much of the communication is hidden behind computing.

The clock runs the loop of `one_weird_trick`. All K ranks compute in step; every rank has a link of its own, which sends
and receives at the same time, activations and gradients do not disturb each other, and a message needs no latency.
`send` is the time in which one rank's link sends its share to all others: that is what each rank does in scheme a, at
the same time as the others; in scheme b one rank after the other; in scheme c each step takes a K-th of it. `reduce` is
the same for the gradients, which an owner receives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from parallel_dl.errors import InputError
from parallel_dl.hybrid.parts import require_scheme


@dataclass(frozen=True)
class Stretch:
    """Something that takes time, of part `part`: "send", "forward", "backward" or "reduce"."""

    kind: str
    part: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """One iteration of the fully connected layers, in the unit of the times given."""

    scheme: str
    stretches: list[Stretch]

    def _sum(self, *kinds: str) -> float:
        return math.fsum(one.end - one.start for one in self.stretches if one.kind in kinds)

    @property
    def time(self) -> float:
        """From the first send to the last gradient."""
        return max(one.end for one in self.stretches)

    @property
    def computing(self) -> float:
        """Time in which the ranks compute."""
        return self._sum("forward", "backward")

    @property
    def communication(self) -> float:
        """Time that sending and reducing would take by themselves."""
        return self._sum("send", "reduce")

    @property
    def hidden(self) -> float:
        """The share of `communication` during which the ranks do not wait; 0 without any.

        In schemes b and c it is (K - 1) / K when computing takes longer than sending: the next part arrives within
        forward and backward of one part, the gradients of the part before within its forward. The first part's sending
        and the last part's reduction have nothing to hide behind. In scheme a nothing is hidden.
        """
        return 1 - (self.time - self.computing) / self.communication if self.communication else 0.0


def timeline(
    scheme: str, ranks: int, forward: float, backward: float, send: float, reduce: float | None = None
) -> Timeline:
    """One iteration on `ranks` ranks: `forward` and `backward` are those of the whole batch, divided among the ranks.

    `send` and `reduce` (by default as long) are those of one rank's share; on one rank there are none. InputError for a
    scheme that is unknown, for no rank, and for times that are negative or not finite.
    """
    require_scheme(scheme)
    reduce = send if reduce is None else reduce
    if ranks < 1:
        raise InputError(f"ranks {ranks}: must be at least 1")
    for name, time in (("forward", forward), ("backward", backward), ("send", send), ("reduce", reduce)):
        if not (time >= 0 and math.isfinite(time)):
            raise InputError(f"{name} {time}: must be a finite number, at least 0")
    if ranks == 1:
        send = reduce = 0.0
    parts = 1 if scheme == "a" else ranks
    of_link = ranks if scheme == "c" else 1  # steps in which a link sends a share
    stretches: list[Stretch] = []

    def add(kind: str, part: int, start: float, length: float) -> float:
        stretches.append(Stretch(kind, part, start, start + length))
        return start + length

    arrived = add("send", 0, 0.0, send / of_link)
    free = reduced = 0.0  # when the ranks have computed, and when the gradients of the part before are back
    for part in range(parts):
        start = max(free, arrived)
        if part + 1 < parts:
            arrived = add("send", part + 1, start, send / of_link)
        forward_end = add("forward", part, start, forward / parts)
        free = add("backward", part, max(forward_end, reduced), backward / parts)
        reduced = add("reduce", part, free, reduce / of_link)
    return Timeline(scheme, stretches)

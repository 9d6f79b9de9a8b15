"""The launcher's side: hears from ranks that wait, asks all when it looks like a deadlock, and tells when it is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from parallel_dl.watchdog import picture
from parallel_dl.watchdog.deadlock import reached, stuck
from parallel_dl.watchdog.state import State

WAITS, GOES_ON, STATE, ENDS = "waits", "goes on", "state", "ends"
"""what a rank says: that it has waited for a while; that it does no longer; how it is, when asked; how it has ended"""
HEARD = (WAITS, GOES_ON, STATE, ENDS)

_APART = 0.4  # seconds between the two looks at a deadlock
_ANSWER_SECONDS = 2.0  # for ranks that wait to answer
_OTHERS_SECONDS = 0.2  # for the others: some compute, and cannot
QUIET = 10.0  # seconds without progress, after which a notice says who computes


class Deadlock(NamedTuple):
    """Ranks that can never go on."""

    ranks: frozenset[int]
    line: str
    """one line, without a full stop"""
    picture: list[str]
    """a line for every rank"""


class Watchdog:
    """Follows all ranks of a job. `ask(message)` sends a message to every rank that lives.

    Give `hear` what the ranks say, and call `look` several times a second.
    """

    def __init__(self, ask: Callable[[Any], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self.states: dict[int, State] = {}
        """of the ranks that wait"""
        self.ended: dict[int, State] = {}
        """of those that have ended, as they were then"""
        self._since: dict[int, float] = {}
        self._suspects: dict[int, int] = {}  # rank -> its number, when it was first seen to be stuck
        self._suspected_at = self._asked_at = 0.0
        self._round = 0
        self._answers: dict[int, State] | None = None
        self._noticed: dict[int, int] = {}  # rank -> its number, when it was named
        self._quiet_until = 0.0
        self.notices: list[str] = []
        """lines about ranks that take long, to be shown and removed"""

    def hear(self, rank: int, kind: str, content: tuple) -> None:
        """A rank has said one of HEARD."""
        if rank in self.ended:  # it waits for the others to end
            return
        if kind == GOES_ON:
            self.states.pop(rank, None)
        elif kind == ENDS:
            self.states.pop(rank, None)
            self.ended[rank] = content[0]
        elif kind == WAITS:
            self.states[rank] = content[0]
            self._since[rank] = self._clock() - content[0].seconds
        elif kind == STATE and self._answers is not None and content[0] == self._round:
            self._answers[rank] = content[1]

    def clear(self) -> None:
        """Forgets all: the ranks begin something new."""
        self.states, self.ended, self._suspects, self._answers = {}, {}, {}, None

    def look(self) -> Deadlock | None:
        """A deadlock, if there is one for certain."""
        now = self._clock()
        if self._answers is not None:
            return self._judge(self._answers, now)
        suspects = stuck({**self.states, **self.ended}, self.ended)
        numbers = {rank: self.states[rank].number for rank in suspects}
        if numbers != self._suspects:
            self._suspects, self._suspected_at = numbers, now
        if (suspects and now - self._suspected_at >= _APART) or self._is_quiet(now):
            self._round += 1
            self._asked_at, self._answers = now, {}
            self._ask((STATE, self._round))
        return None

    def leftovers(self) -> list[str]:
        """After the end of all ranks: what nobody has waited for, and messages that nobody has received."""
        found = []
        for rank, state in sorted(self.ended.items()):
            found += [f"rank {rank} never waited for {what}" for what in state.unfinished]
        for source, state in sorted(self.ended.items()):
            for (group, to, tag), sent in state.sent.items():
                other = self.ended.get(to)
                if other is None or group in other.inexact or group in state.inexact:
                    continue
                left = sent - other.received.get((group, source, tag), 0)
                if left > 0:
                    messages = "a message" if left == 1 else f"{left} messages"
                    name = state.names.get(group, group)
                    found.append(f"rank {to} never received {messages} from rank {source} with tag {tag} on {name}")
        return found

    def _is_quiet(self, now: float) -> bool:
        return now >= self._quiet_until and any(now - self._since[rank] >= QUIET for rank in self.states)

    def _judge(self, answers: dict[int, State], now: float) -> Deadlock | None:
        """Decides, when all ranks have answered that are known to wait, and the others have had their time."""
        waited = now - self._asked_at
        if any(rank not in answers for rank in self.states) and waited < _ANSWER_SECONDS:
            return None
        if waited < _OTHERS_SECONDS:
            return None
        self._answers = None
        known = {**answers, **self.ended}
        certain = {rank for rank in stuck(known, self.ended) if self._is_as_before(rank, answers[rank])}
        if certain and certain == stuck({**{r: answers[r] for r in certain}, **self.ended}, self.ended):
            line = f"deadlock: {picture.headline(certain, known, self.ended)}"
            return Deadlock(frozenset(certain), line, picture.lines(certain, known, self.ended))
        self._suspects = {}
        if self._is_quiet(now):
            self._quiet_until = now + QUIET
            self._notice(known, now)
        return None

    def _is_as_before(self, rank: int, answer: State) -> bool:
        before = self.states.get(rank)
        return before is not None and before.number == answer.number and before.sent == answer.sent

    def _notice(self, known: dict[int, State], now: float) -> None:
        """Names the ranks in their own code for which others have waited long."""
        waiting = {rank for rank in self.states if now - self._since[rank] >= QUIET and known.get(rank, _NONE).waits}
        for rank in sorted(known):
            state = known[rank]
            if state.waits or rank in self.ended or self._noticed.get(rank) == state.number:
                continue
            behind = {other for other in waiting if rank in reached(other, known)}
            if behind and state.seconds >= QUIET - 1:
                self._noticed[rank] = state.number
                self.notices.append(picture.notice(state, behind))


_NONE = State(-1, -1, 0.0)

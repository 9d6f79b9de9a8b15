"""What a rank tells of itself: where it is, what it waits for, and which messages and collectives it has got to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from parallel_dl.watchdog.record import COLLECTIVE, RECEIVE, Group, Record, Started, Waited, file_and_line

_MOST = 3  # that are told of what was started


@dataclasses.dataclass(frozen=True)
class Wait:
    """One thing that a rank waits for; ranks are numbers in the world."""

    kind: str
    """SEND, RECEIVE or COLLECTIVE"""
    call: str
    """as the program calls it, with what it passes"""
    group: str
    """the communicator's key"""
    communicator: str
    """its name"""
    peer: int | None = None
    """the other rank of a message; None for any, or none"""
    tag: int | None = None
    """None for any"""
    number: int = 0
    """which collective of its communicator"""
    members: tuple[int, ...] = ()
    """the ranks of the communicator"""


@dataclasses.dataclass(frozen=True)
class State:
    """One rank at one moment."""

    rank: int
    number: int
    """calls begun: unchanged as long as the rank is in the same call, or between the same two"""
    seconds: float
    """how long it has been there"""
    waits: tuple[Wait, ...] = ()
    """what its call waits for; empty for a rank in its own code"""
    one_is_enough: bool = False
    """whether one of `waits` is, else it needs all of them"""
    call: str = ""
    """the call it is in, in words, or the last one that it made"""
    where: str = ""
    """FILE:LINE in FUNCTION of the program"""
    frames: tuple[str, ...] = ()
    """the lines that led there, innermost first"""
    sent: dict[tuple[str, int, int], int] = dataclasses.field(default_factory=dict)
    """(communicator, destination, tag) -> messages sent so far"""
    received: dict[tuple[str, int, int], int] = dataclasses.field(default_factory=dict)
    """(communicator, source, tag) -> messages received so far"""
    posted: tuple[Wait, ...] = ()
    """receives that were started and are not complete"""
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    """communicator -> collectives begun"""
    calls: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)
    """communicator -> number and name of the last collectives"""
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    """communicator -> how the program calls it"""
    inexact: frozenset[str] = frozenset()
    """communicators of which not all messages are counted"""
    unfinished: tuple[str, ...] = ()
    """what was started and has not been waited for, in words"""
    others: int = 0
    """threads of the program beside the main one, which may call, too"""


class Watch:
    """Looks at a record again and again, and knows since when it has not changed."""

    def __init__(self, record: Record, rank: int) -> None:
        self.record, self.rank = record, rank
        self._number, self._since = -1, time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the rank has been where it is."""
        now = time.monotonic()
        if self.record.number != self._number:
            self._number, self._since = self.record.number, now
        return now - self._since

    @property
    def is_waiting(self) -> bool:
        """Whether it is inside a call that waits."""
        return self.record.waiting is not None

    def state(self, where: str = "", frames: tuple[str, ...] = (), call: str = "", others: int = 0) -> State:
        """How it is now; what the program's frames show is told by the caller."""
        record, seconds = self.record, self.seconds
        number, waiting = record.number, record.waiting
        told = [] if waiting is None else waiting if isinstance(waiting, list) else [waiting]
        parts = [Waited(*one) for one in told]
        groups = list(record.groups.values())
        if record.number != number:  # it has gone on meanwhile
            parts = []
        posted = [Waited(*one.waited) for one in list(record.started.values()) if one.waited[0] == RECEIVE]
        return State(
            rank=self.rank,
            number=number,
            seconds=seconds,
            waits=tuple(map(_wait, parts)),
            one_is_enough=record.one_is_enough,
            call=call or _call(record.call, parts),
            where=where or _where(record),
            frames=frames,
            sent={(g.key, g.ranks[peer], tag): n for g in groups for (peer, tag), n in _items(g, g.sent)},
            received={(g.key, g.ranks[peer], tag): n for g in groups for (peer, tag), n in _items(g, g.received)},
            posted=tuple(map(_wait, posted)),
            unfinished=tuple(map(_started, list(record.started.values())[:_MOST])),
            collectives={group.key: group.collectives for group in groups},
            calls={group.key: dict(group.calls.copy()) for group in groups if group.calls},
            names={group.key: group.name for group in groups},
            inexact=frozenset(group.key for group in groups if not group.is_exact),
            others=others,
        )


def _call(name: str, parts: Sequence[Waited]) -> str:
    """The call in words, and what it waits for where that was started before."""
    said = [f"{words(part)} on {part.group.name}" for part in parts]
    if [part.call for part in parts] == [name]:
        return said[0]
    if len({part.call for part in parts}) == 1 and parts[0].call == name:  # both halves of an exchange
        return f"{name}({', '.join(words(part).partition('(')[2].removesuffix(')') for part in parts)})"
    return f"{name} of {', '.join(said[:3])}{', ...' if len(said) > 3 else ''}" if said else name


def _items(group: Group, counts: dict[tuple[int, int], int]) -> list[tuple[tuple[int, int], int]]:
    """The counts of ranks that there are: some calls are given others."""
    copied = dict(counts)  # in one step: the calling thread goes on
    return [((peer, int(tag)), number) for (peer, tag), number in copied.items() if 0 <= peer < group.size]


def _where(record: Record) -> str:
    if record.place is None:
        return ""
    file, line = file_and_line(record.place)
    return f"{file.rpartition('/')[2]}:{line}"


def _wait(waited: Waited) -> Wait:
    group = waited.group
    peer = waited.peer
    return Wait(
        kind=waited.kind,
        call=words(waited),
        group=group.key,
        communicator=group.name,
        peer=group.ranks[peer] if 0 <= peer < len(group.ranks) else None,
        tag=int(waited.tag) if waited.tag >= 0 else None,  # a program's own kind of int stays there
        number=waited.number,
        members=group.ranks,
    )


def words(waited: Waited) -> str:
    """The call, as it would be written down with what it passes."""
    said: list[str] = []
    if waited.kind == COLLECTIVE:
        given, named = waited.what if isinstance(waited.what, tuple) else ((), {})
        said = [*map(described, given), *(f"{name}={described(one)}" for name, one in named.items())]
    else:
        said = [] if waited.what is None else [described(waited.what)]
        said.append(f"{'dest' if waited.kind == 'send' else 'source'}={_or_any(waited.peer)}")
        said.append(f"tag={_or_any(waited.tag)}")
    return f"{waited.call}({', '.join(said)})"


def _or_any(number: int) -> str:
    return str(int(number)) if number >= 0 else "any"


def described(thing: Any) -> str:
    """An argument in a few words: an array by its type and shape."""
    shape, dtype = getattr(thing, "shape", None), getattr(thing, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{dtype} {shape}"
    if isinstance(thing, (bool, int, float, str, type(None))):
        text = repr(thing)
        return text if len(text) <= 40 else text[:37] + "..."
    if isinstance(thing, (list, tuple)) and len(thing) <= 4:
        opening, closing = "[]" if isinstance(thing, list) else "()"
        return opening + ", ".join(map(described, thing)) + closing
    if isinstance(thing, type):
        return thing.__name__
    name = getattr(thing, "name", None)
    return name if isinstance(name, str) and name else type(thing).__name__


def _started(started: Started) -> str:
    waited = Waited(*started.waited)
    file, line = file_and_line(started.place)
    return f"{words(waited)} on {waited.group.name} ({file.rpartition('/')[2]}:{line})"

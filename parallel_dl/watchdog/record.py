"""What a rank is doing, as its calls write it down and its watching thread reads it.

Everything is kept in numbers that all ranks agree on: a communicator has the same key on each of its ranks, a
collective is the n-th on its communicator, and messages are counted by destination and tag.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, NamedTuple

SEND, RECEIVE, COLLECTIVE = "send", "receive", "collective"

_RECENT = 16  # collectives of a communicator whose names are kept: a root may be ahead of the others

Place = tuple[CodeType, int]
"""a code object and the index of an instruction: its line is looked up only when somebody asks"""


class Group:
    """One communicator: who is in it, and what this rank has done on it."""

    def __init__(self, key: str, ranks: Sequence[int], name: str) -> None:
        self.key = key
        """the same on all its ranks, and on no other communicator"""
        self.ranks = tuple(ranks)
        """their numbers in the world, in the order of the communicator"""
        self.size = len(self.ranks)
        self.name = name
        self.collectives = 0
        """collectives that this rank has begun"""
        self.calls: deque[tuple[int, str]] = deque(maxlen=_RECENT)
        """number and name of the last of them, where they are known to be one call of MPI each"""
        self.made = 0
        """communicators made from it"""
        self.compared = 0
        """groups of comparisons made from it"""
        self.is_of_comparisons = False
        self.sent: dict[tuple[int, int], int] = {}
        """(destination, tag) -> messages whose send has begun; ranks as the communicator numbers them"""
        self.received: dict[tuple[int, int], int] = {}
        """(source, tag) -> messages that have been received"""
        self.has_context = False
        """whether mpi4py has made a communicator of its own from it"""
        self.is_exact = True
        """whether all its messages are counted: some calls of MPI are not looked at"""

    def comparisons(self) -> Group:
        """A group of the same ranks, whose collectives are comparisons of this one's; made by all of them together.

        There may be several: each communicator of the package compares its own calls.
        """
        self.compared += 1
        group = Group(f"{self.key} compared {self.compared}", self.ranks, self.name)
        group.is_of_comparisons = True
        this_rank.groups[group.key] = group
        return group

    def begin_collective(self, name: str) -> int:
        """This rank calls the next one; returns its number."""
        self.collectives += 1
        self.calls.append((self.collectives, name))
        return self.collectives

    def __repr__(self) -> str:
        return f"Group({self.key!r}, {self.name!r}, ranks {self.ranks})"


class Waited(NamedTuple):
    """One thing that a call waits for."""

    kind: str
    """SEND, RECEIVE or COLLECTIVE"""
    call: str
    group: Group
    peer: int = -1
    """the other rank of a message, as the group numbers them; negative: any, or none"""
    tag: int = -1
    """negative: any"""
    what: Any = None
    """what is passed, as the call was given it"""
    number: int = 0
    """of a collective: which one it is on its communicator"""


Told = tuple[str, str, Group, int, int, Any, int]
"""the same as a plain tuple: to make one takes a tenth of the time"""


class Started:
    """A call that does not block, until its request is complete."""

    __slots__ = ("compared", "guard", "has_any", "is_done", "place", "waited")

    def __init__(self, waited: Told, place: Place, compared: Any = None, guard: Any = None) -> None:
        self.waited, self.place, self.is_done = waited, place, False
        self.compared, self.guard = compared, guard
        """of a collective: what tells whether all ranks make the same; and in checked mode, of its array"""
        self.has_any = waited[0] == RECEIVE and (waited[3] < 0 or waited[4] < 0)
        """whether it is a receive of which only its status tells whose message it has got"""


class Record:
    """This rank's calls. Written by the thread that calls; the watching thread only reads."""

    __slots__ = ("call", "groups", "number", "one_is_enough", "place", "started", "waiting")

    def __init__(self) -> None:
        self.number = 0
        """calls begun so far: as long as it does not change, the rank is where it was"""
        self.waiting: Told | list[Told] | None = None
        """what the call under way waits for, or a list of what it waits for; None outside calls"""
        self.one_is_enough = False
        """whether one of several will do"""
        self.call = ""
        """the last call, whether it is under way or over"""
        self.place: Place | None = None
        """where it was made: the innermost frame that is not of this package"""
        self.groups: dict[str, Group] = {}
        self.started: dict[int, Started] = {}
        """what was started and is not complete, by id"""


this_rank = Record()  # of the process, like MPI
counting = threading.RLock()  # for counts of messages, which several threads may send


def begin(call: str, waiting: Told | list[Told], depth: int = 3) -> None:
    """A call begins; the frame at `depth` made it."""
    here = this_rank
    here.number += 1
    here.call = call
    here.place = caller(depth)
    here.waiting = waiting


def over() -> None:
    """It is over."""
    this_rank.waiting, this_rank.one_is_enough = None, False


_is_ours: Callable[[str], bool] = lambda file: False  # noqa: E731
_is_known = False
_known: dict[int, tuple[bool, CodeType]] = {}  # by id, since Python computes the hash of a code object anew each time


def know_ours(is_ours: Callable[[str], bool]) -> None:
    """How to tell the files that are not the program's: this package's, and those of libraries."""
    global _is_ours, _is_known
    _is_ours, _is_known = is_ours, True


_NEAR = 16  # frames between a program and the call that it makes through this package


def caller(depth: int) -> Place:
    """The innermost frame, from `depth` on, that is the program's; the innermost one if none is near."""
    frame: Any = sys._getframe(depth)
    first = frame
    for _ in range(_NEAR):  # a command of ours has none, and its stack is deep
        if frame is None:
            break
        code = frame.f_code
        known = _known.get(id(code))
        if known[0] if known is not None else _is_new_and_ours(code):
            frame = frame.f_back
        else:
            return code, frame.f_lasti
    return first.f_code, first.f_lasti


def variables_of_caller(depth: int) -> dict[str, Any]:
    """The variables of the program where it has called, from `depth` frames on."""
    frame: Any = sys._getframe(depth)
    while frame is not None and _is_new_and_ours(frame.f_code):
        frame = frame.f_back
    return {} if frame is None else dict(frame.f_locals)


def _is_new_and_ours(code: CodeType) -> bool:
    ours = _is_ours(code.co_filename)
    _known[id(code)] = ours, code
    return ours


def where(depth: int = 3) -> str:
    """FILE:LINE of the program that has made the call; empty if nobody has said which files are the program's."""
    if not _is_known:
        return ""
    file, line = file_and_line(caller(depth))
    return f"{file.rpartition('/')[2]}:{line}"


def last_call() -> str:
    """FILE:LINE of the last call that was made; empty before the first."""
    if this_rank.place is None or not _is_known:
        return ""
    file, line = file_and_line(this_rank.place)
    return f"{file.rpartition('/')[2]}:{line}"


@functools.lru_cache(4096)
def file_and_line(place: Place) -> tuple[str, int]:
    """Of a place."""
    code, index = place
    lines = [number for start, end, number in code.co_lines() if start <= index < end and number is not None]
    return code.co_filename, lines[0] if lines else code.co_firstlineno

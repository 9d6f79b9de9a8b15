"""What a rank has for itself: in the process, which is one rank, or in a context, where several share a process.

Nothing that belongs to a rank lives in a global variable of a module. A module that has to remember something for its
rank (its world, the communicators that it has to take leave of) puts it into a class, and asks for `mine(Class)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


class Rank:
    """One object of each class that was asked for."""

    def __init__(self) -> None:
        self._own: dict[type, object] = {}

    def own(self, kind: type[T]) -> T:
        """This rank's object of the class, made (without arguments) when it is first asked for."""
        if kind not in self._own:
            self._own[kind] = kind()
        found = self._own[kind]
        assert isinstance(found, kind)
        return found


_of_process = Rank()
_current: ContextVar[Rank] = ContextVar("rank")


def mine(kind: type[T]) -> T:
    """The current rank's object of the class."""
    return _current.get(_of_process).own(kind)


@contextmanager
def as_rank(rank: Rank) -> Iterator[None]:
    """Inside, and in what is called from there, the current rank is this one."""
    token = _current.set(rank)
    try:
        yield
    finally:
        _current.reset(token)

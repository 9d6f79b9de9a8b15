"""A time limit for each part of a command on ranks; after it, each rank says in which call it waits, and all end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from parallel_dl.launch import rank
from parallel_dl.launch.tracebacks import call_of_thread

if TYPE_CHECKING:
    from parallel_dl.mpi import Communicator

TIME_LIMIT = 900.0  # seconds, by default: a layout takes less than one for a small network, minutes for a full-size one
MOST_SECONDS = 1e7
_OTHERS_SECONDS = 1.0  # in which the other ranks, whose limit ends at about the same time, say where they are

T = TypeVar("T")


class TimeLimit:
    """Watches this rank from a thread while it is entered; the ranks of `comm` do the same parts at the same time."""

    def __init__(self, seconds: float, comm: Communicator) -> None:
        self.seconds, self.comm = seconds, comm
        self._what: str | None = None
        self._changed = threading.Condition()
        self._over = False
        self._main = threading.get_ident()

    def each(self, things: Iterable[T], name: Callable[[T], str]) -> Iterator[T]:
        """Gives the things one by one; each has the time limit, until the next is asked for."""
        for thing in things:
            with self._changed:
                self._what = name(thing)
                self._changed.notify()
            yield thing

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="time limit", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                in_time = self._changed.wait(None if self._what is None else self.seconds)
                if not in_time and not self._over:
                    self._end()
                    return

    def _end(self) -> None:
        """Says where this rank is, and ends it with all others."""
        where = call_of_thread(self._main)
        line = f"{self._what}: took more than {self.seconds:g} s"
        if rank.connected():  # the launcher makes one line of what all ranks say, and ends them
            rank.send(("late", line, where))
            return
        if self.comm.size == 1:
            line = f"{line}: rank 0 {where}"
        else:
            print(f"parallel-dl: {line}: rank {self.comm.rank} {where}", file=sys.stderr, flush=True)
            time.sleep(_OTHERS_SECONDS)
            from parallel_dl.mpi.abort import abort

            abort(1)
        print(f"parallel-dl: {line}", file=sys.stderr, flush=True)
        os._exit(1)

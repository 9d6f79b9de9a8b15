"""A rank's watching thread: tells the launcher when this rank has waited for a while, and how it is when asked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from parallel_dl import watchdog
from parallel_dl.launch.environment import WATCHDOG_VARIABLE
from parallel_dl.launch.tracebacks import CHECKED_VARIABLE, call_in, frames_of, is_library, is_ours, lines_of
from parallel_dl.watchdog.watchdog import ENDS, GOES_ON, STATE, WAITS

_LOOK_SECONDS = 0.2  # between two looks
_WAITS_SECONDS = 0.5  # after which a rank says that it waits
_OURS = ("launcher watch", "interrupt watch", "rank watch", "time limit", "passage")


class Watching(threading.Thread):
    """Looks at this rank's record as long as it lives; `send` passes a message to the launcher."""

    def __init__(self, rank: int, send: Callable[[tuple], None]) -> None:
        super().__init__(name="rank watch", daemon=True)
        self._watch = watchdog.Watch(watchdog.this_rank, rank)
        self._send = send
        self._main = threading.main_thread().ident

    def run(self) -> None:
        told: int | None = None  # the number of the call that was said to wait
        while True:
            time.sleep(_LOOK_SECONDS)
            number = watchdog.this_rank.number
            if told is not None and (number != told or not self._watch.is_waiting):
                self._send((GOES_ON,))
                told = None
            if told is None and self._watch.seconds >= _WAITS_SECONDS and self._watch.is_waiting:
                state = self.state()
                if state.waits:
                    told = state.number
                    self._send((WAITS, state))

    def state(self) -> watchdog.State:
        """How this rank is now."""
        frames = frames_of(self._main)
        lines = lines_of(frames)
        others = sum(thread.name not in _OURS and thread.ident != self._main for thread in threading.enumerate())
        return self._watch.state(lines[0] if lines else "", tuple(lines), call_in(frames), others)

    def answer(self, round: int) -> None:
        """The launcher has asked."""
        self._send((STATE, round, self.state()))

    def end(self) -> None:
        """The program has ended."""
        self._send((ENDS, self._watch.state()))


def is_on() -> bool:
    """Whether this rank's calls are to be written down."""
    return os.environ.get(WATCHDOG_VARIABLE, "") != "0"


def sees_mpi(variables: Mapping[str, str]) -> bool:
    """Whether the calls of mpi4py itself are written down."""
    return not {"0", "unwrapped"} & set(variables.get(WATCHDOG_VARIABLE, "").split(","))


def watch_mpi(before_end: Callable[[], None]) -> None:
    """Wraps mpi4py as soon as it is imported, by whom ever; `before_end` is called when the program ends MPI."""
    wanted = os.environ.get(WATCHDOG_VARIABLE, "").split(",")
    watchdog.know_ours(lambda file: is_ours(file) or is_library(file))
    if sees_mpi(os.environ):
        checked = os.environ.get(CHECKED_VARIABLE, "0") not in ("", "0")

        def wrap(MPI: Any) -> None:
            watchdog.wrap(MPI, "synchronous" in wanted, checked, before_end)

        watchdog.when_imported("mpi4py.MPI", wrap)

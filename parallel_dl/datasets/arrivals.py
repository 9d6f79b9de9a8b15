"""Samples that arrive at a limited rate: waits for those not there yet, and counts those that queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from parallel_dl.errors import InputError


@dataclass(frozen=True)
class Stream:
    """How a run consumed a stream of samples. Rates are in samples per second."""

    rate: float
    """the rate at which they arrived"""
    throughput: float | None
    """the rate at which they were taken in the second half; None with fewer than 4 microbatches"""
    queue: int
    """the number of samples waiting when the last ones were taken"""
    queue_growth: float | None
    """the growth of the queue per second in the second half"""
    seconds_waited: float
    """the time that the first layers spent waiting for samples"""


class Arrivals:
    """A stream of `rate` samples per second. The first ones are available at once; the clock starts with them.

    The queue is unbounded: samples that arrive while none are taken wait in it. `clock` and `sleep` are for tests.
    Raises InputError for a rate that is not a finite number above 0.
    """

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not 1e-6 <= rate <= 1e12:
            raise InputError(f"input_rate {rate}: must be in 1e-6..1e12 samples per second")
        self.rate, self._clock, self._sleep = rate, clock, sleep
        self._taken: list[tuple[float, int]] = []  # when, how many in all by then
        self._waited = 0.0

    def take(self, samples: int) -> None:
        """Takes the next samples (of all ranks), once all have arrived."""
        now = self._clock()
        if not self._taken:
            self._start, self._first = now, samples
        before = self._taken[-1][1] if self._taken else 0
        due = self._start + (before + samples - self._first) / self.rate
        asked = now
        while now < due:
            self._sleep(due - now)
            now = self._clock()
        self._waited += now - asked
        self._taken.append((now, before + samples))

    def _queue(self, entry: int) -> int:
        """How many had come and were not taken, just after that entry."""
        now, taken = self._taken[entry]
        return int(self._first + (now - self._start) * self.rate + 1e-6) - taken

    def measured(self) -> Stream:
        """The measurements over the samples taken so far."""
        if not self._taken:
            return Stream(self.rate, None, 0, None, 0.0)
        half, last = len(self._taken) // 2, len(self._taken) - 1
        seconds = self._taken[last][0] - self._taken[half][0]
        throughput = growth = None
        if last - half >= 1 and len(self._taken) >= 4 and seconds > 0:
            throughput = (self._taken[last][1] - self._taken[half][1]) / seconds
            growth = (self._queue(last) - self._queue(half)) / seconds
        return Stream(self.rate, throughput, self._queue(last), growth, self._waited)

"""Timing in turns: what is compared takes turns call by call, so a slow phase of the machine meets all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

ROUNDS = 3


def medians(calls: dict[str, Callable[[], object]], repeats: int, rounds: int = ROUNDS) -> list[dict[str, float]]:
    """For each round, name -> median seconds of `repeats` calls."""
    for _ in range(3):
        for call in calls.values():
            call()
    table = []
    for _ in range(rounds):
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        table.append({name: statistics.median(values) for name, values in times.items()})
    return table

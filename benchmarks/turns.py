"""Timing in turns: what is compared takes turns call by call, so a slow phase of the machine meets all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parallel_dl.mpi import Communicator

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


def medians_on_ranks(
    comm: Communicator,
    calls: dict[str, tuple[bool, Callable[[], object]]],
    repeats: int,
    steps: int = 1,
    rounds: int = ROUNDS,
) -> list[dict[str, float]]:
    """The same for name -> (whether all ranks make the call together, the call), `steps` calls at a time.

    What is not made together rank 0 makes alone, with the machine to itself. Empty on the other ranks.
    """
    table = []
    for _ in range(rounds):
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, (together, call) in calls.items():
                _idle_barrier(comm)
                if together or comm.rank == 0:
                    call()  # warm caches
                    start = time.perf_counter()
                    for _ in range(steps):
                        call()
                    times[name].append((time.perf_counter() - start) / steps)
        table.append({name: statistics.median(values) for name, values in times.items() if values})
    return table if comm.rank == 0 else []


def _idle_barrier(comm: Communicator) -> None:
    """A barrier whose waiting ranks sleep: the rank that still computes has the machine to itself."""
    request = comm.mpi.Ibarrier()
    while not request.Test():
        time.sleep(0.0005)

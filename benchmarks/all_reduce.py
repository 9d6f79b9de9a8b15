"""All-reduce through a shared-memory window against MPI's own: `mpirun -n 2 python benchmarks/all_reduce.py [--json]`.

Both run in turns, so that a slow phase of the machine meets both; of every three rounds' medians the best is kept.
Times are in microseconds on rank 0, float32. `copy` is one memcpy of the array, for comparison.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from parallel_dl.mpi import MPI, Communicator, SharedWindow, library_version, world

SIZES = (4, 64 << 10, 1 << 20, 16 << 20)  # bytes


def measure(comm: Communicator, calls: dict[str, Callable[[], object]], repeats: int, rounds: int = 3) -> dict:
    """name -> best of the rounds' medians, in microseconds; the calls take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                comm.mpi.Barrier()
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        for name, values in times.items():
            best[name] = min(best[name], float(np.median(values)) * 1e6)
    return best


def main() -> None:
    """Prints the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    comm = world()
    rows = []
    for size in SIZES:
        count = size // 4
        values = np.random.default_rng(comm.rank).standard_normal(count, np.float32)
        result, copy = np.empty_like(values), np.empty_like(values)
        window = SharedWindow(comm, count, np.float32)
        window.local[:] = values
        calls: dict[str, Callable[[], object]] = {
            "window": window.all_reduce,
            "mpi": lambda values=values, result=result: comm.mpi.Allreduce(values, result, MPI.SUM),
            "communicator": lambda values=values, result=result: comm.all_reduce(values, out=result),
            "copy": lambda values=values, copy=copy: np.copyto(copy, values),
        }
        times = measure(comm, calls, repeats=max(15, min(2000, (64 << 20) // size)))
        rows.append({"bytes": size, "ranks": comm.size, **times, "mpi / window": times["mpi"] / times["window"]})
        window.free()
    if comm.rank == 0:
        if arguments.json:
            print(json.dumps({"library": library_version(), "microseconds": rows}))
        else:
            names = list(rows[0])
            print("".join(f"{name:>14}" for name in names))
            for row in rows:
                print("".join(f"{row[n]:>14d}" if isinstance(row[n], int) else f"{row[n]:>14.2f}" for n in names))


if __name__ == "__main__":
    main()

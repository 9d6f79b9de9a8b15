"""What the watchdog and checked mode cost: a call, and the MLP's step on two ranks. python -m benchmarks.watchdog"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.turns import medians
from parallel_dl import launch

VARIANTS = {
    "neither": {"PARALLEL_DL_WATCHDOG": "0", "PARALLEL_DL_CHECKED": "0"},
    "watchdog": {"PARALLEL_DL_CHECKED": "0"},
    "watchdog, checked": {"PARALLEL_DL_CHECKED": "1"},
}
STEPS = 500


def _train(variables: dict[str, str]) -> None:
    """Trains the MLP; what matters is the time that it says its steps took."""
    command = [sys.executable, "-m", "parallel_dl", "train", "mlp", "--dp", "2", "--steps", str(STEPS), "--json"]
    ended = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, check=True)
    _seconds.append(json.loads(ended.stdout)["seconds"] / STEPS)


_seconds: list[float] = []


def _calls() -> None:
    """On each of two ranks: an all-reduce of 8 values, and a message to oneself; rank 0 prints microseconds."""
    import numpy as np

    from parallel_dl.mpi import MPI, world

    comm, x, y = world(), np.ones(8), np.empty(8)

    def message() -> None:
        request = MPI.COMM_SELF.Isend(x, 0)
        MPI.COMM_SELF.Recv(y, 0, 0)
        request.Wait()

    calls = {"all_reduce": lambda: comm.all_reduce(x), "three calls of a message": message}
    table = medians(calls, repeats=2000, rounds=1)
    if comm.rank == 0:
        print(", ".join(f"{name} {seconds * 1e6:.1f} us" for name, seconds in table[0].items()), flush=True)


def main() -> None:
    """Prints a line for each variant, and the ratios of the steps: medians of five in turns."""
    if "--rank" in sys.argv:
        _calls()
        return
    for name, variables in VARIANTS.items():
        print(f"{name}: ", end="", flush=True)
        launch.run(2, ["-m", "benchmarks.watchdog", "--rank"], variables)
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(5):
        for name, variables in VARIANTS.items():
            _train(variables)
            times[name].append(_seconds.pop())
    middle = {name: sorted(values)[2] for name, values in times.items()}
    for name, seconds in middle.items():
        print(f"step of the MLP on 2 ranks, {name}: {seconds * 1e6:.0f} us, ratio {seconds / middle['neither']:.2f}")


if __name__ == "__main__":
    main()

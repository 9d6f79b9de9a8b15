"""Seconds until two ranks are up with parallel_dl, and of `parallel-dl --help`: python -m benchmarks.start_up."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.turns import medians
from parallel_dl import launch


def _import_on_two_ranks() -> None:
    launch.run(2, ["-m", "benchmarks.start_up", "--rank"])


def main() -> None:
    """Prints the medians (best of three)."""
    if "--rank" in sys.argv:  # what the two ranks run
        import parallel_dl.mpi

        parallel_dl.mpi.world().barrier()
        return
    show_help = [sys.executable, "-m", "parallel_dl", "--help"]
    calls = {
        "two ranks up, through the imports and down again": _import_on_two_ranks,
        "parallel-dl --help": lambda: subprocess.run(show_help, stdout=subprocess.DEVNULL, check=True),
    }
    table = medians(calls, repeats=5)
    for name in calls:
        print(f"{name}: {min(row[name] for row in table):.3f} s")


if __name__ == "__main__":
    main()

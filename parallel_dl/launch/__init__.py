"""Starts and monitors ranks: everything about mpirun, nothing of MPI itself (which is never imported here).

To read in this order: environment, rank, job, pages, ends, running.
"""

from typing import TYPE_CHECKING, Any

from parallel_dl.launch.environment import (
    cores,
    find_mpirun,
    finding_us,
    inside_mpirun,
    mpirun_rank,
    mpirun_size,
    without_shared_memory,
)

if TYPE_CHECKING:
    from parallel_dl.launch.job import Event, Job
    from parallel_dl.launch.running import run

__all__ = [
    "Event",
    "Job",
    "cores",
    "find_mpirun",
    "finding_us",
    "inside_mpirun",
    "mpirun_rank",
    "mpirun_size",
    "run",
    "without_shared_memory",
]


def __getattr__(name: str) -> Any:
    """What starts ranks is imported when it is first used: `--help`, and every rank, go without it."""
    if name in ("Event", "Job"):
        from parallel_dl.launch import job as module
    elif name == "run":
        from parallel_dl.launch import running as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)

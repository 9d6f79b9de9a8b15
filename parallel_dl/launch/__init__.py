"""Starting ranks and watching them: everything about mpirun, nothing of MPI itself (it is never imported here).

To read in this order: environment, rank, job, pages, ends, run.
"""

from parallel_dl.launch.environment import (
    cores,
    find_mpirun,
    finding_us,
    inside_mpirun,
    mpirun_rank,
    mpirun_size,
    without_shared_memory,
)
from parallel_dl.launch.job import Event, Job
from parallel_dl.launch.run import run

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

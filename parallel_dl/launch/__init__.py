"""Starting ranks and watching them: everything about mpirun, nothing of MPI itself (it is never imported here).

To read in this order: environment, rank, job, pages, ends, run.
"""

import sys

from parallel_dl import interrupts

if sys.orig_argv[1:3] == ["-m", "parallel_dl.launch"]:  # a rank of ours: what follows takes a moment
    interrupts.end_at_once("parallel-dl: a rank was interrupted (SIGINT) while it started")

from parallel_dl.launch.environment import (
    cores,
    find_mpirun,
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
    "inside_mpirun",
    "mpirun_rank",
    "mpirun_size",
    "run",
    "without_shared_memory",
]

r"""One rank computes for eleven seconds while the others wait.

Ranks: 3
Prints: 3
Notice: rank 1 has been in its own code for \d+ s, at slow_rank\.py:\d+; ranks 0 and 2 wait for it
"""

import time

from mpi4py import MPI

comm = MPI.COMM_WORLD
if comm.rank == 1:
    end = time.monotonic() + 11
    total = 0
    while time.monotonic() < end:
        total += sum(range(10_000))
ranks = comm.allreduce(1)
if comm.rank == 0:
    print(ranks)

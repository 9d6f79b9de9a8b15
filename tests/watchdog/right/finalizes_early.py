"""MPI.Finalize() at the end of the communication: rank 0 computes on without MPI.

Ranks: 3
Prints: 3 after MPI
"""

import time

from mpi4py import MPI

comm = MPI.COMM_WORLD
size = comm.allreduce(1)
rank = comm.rank
MPI.Finalize()
if rank == 0:
    time.sleep(2)
    print(size, "after MPI")

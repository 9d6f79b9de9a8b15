r"""The last rank makes one step more than the others.

Ranks: 3
Said: deadlock: ranks 0 and 1 have ended, and rank 2 waits for them
First: rank 2  waits in Allreduce\(.*\) on MPI.COMM_WORLD for ranks 0 and 1 .*:16
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
steps = 5 if rank < size - 1 else 6  # BUG
total = np.empty(1)
for _ in range(steps):
    comm.Allreduce(np.ones(1), total)

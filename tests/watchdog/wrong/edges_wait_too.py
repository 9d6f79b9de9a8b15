r"""A line in which the first rank waits for a neighbour that it has not got, instead of PROC_NULL.

Ranks: 3
Said: deadlock: .*
First: rank 2  has ended.*
Row: rank 0  waits in Recv\(.*source=2.*:19
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x, y = np.full(1, float(rank)), np.empty(1)
right = rank + 1 if rank + 1 < size else MPI.PROC_NULL
left = (rank - 1) % size  # BUG: -1 on rank 0 should be PROC_NULL
for _ in range(2):
    comm.Send(x, dest=right)
    comm.Recv(y, source=left)

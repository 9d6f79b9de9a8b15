r"""A rank sends to itself before it receives.

Ranks: 2
Said: deadlock: rank 1 waits for itself
First: rank 1  waits in Ssend\(float64 \(4,\), dest=1, tag=0\) .*:15
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x = np.ones(4)
if rank == 1:
    comm.Ssend(x, dest=rank)  # BUG
    comm.Recv(x, source=rank)

r"""A request that nobody waits for.

Ranks: 2
Told: rank 0 never waited for Isend\(float64 \(3,\), dest=1, tag=2\) on MPI.COMM_WORLD \(forgotten_wait.py:13\)
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank == 0:
    comm.Isend(np.ones(3), dest=1, tag=2)  # BUG
else:
    comm.Recv(np.empty(3), source=0, tag=2)

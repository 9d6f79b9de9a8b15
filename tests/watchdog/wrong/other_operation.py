r"""One rank takes the maximum, the others the sum.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 1 calls Allreduce\(op=MAX, 2 x f8\) but ranks
First: rank 1  Allreduce\(op=MAX, 2 x f8\) .*:15
Unchecked: nothing
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
total = np.empty(2)
comm.Allreduce(np.ones(2), total, op=MPI.MAX if rank == 1 else MPI.SUM)  # BUG

r"""A broadcast inside `if rank == 0`; the others are at the reduction.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 0 calls Bcast\(.*\) but ranks 1 and 2 call Reduce
First: rank 0  Bcast\(root=0, 4 x f8\) .*:17
Unchecked: nothing
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
weights = np.zeros(4)
if rank == 0:
    weights += 1
    comm.Bcast(weights, root=0)  # BUG
loss, total = np.ones(1), np.empty(1)
comm.Reduce(loss, total, root=0)
comm.Barrier()

r"""A collective that does not block is left out by one rank, and the others wait for it.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 1 calls Barrier\(\) but ranks 0 and 2 call Iallreduce
First: rank 1  Barrier\(\) .*:18
Unchecked: deadlock: .*rank 1 called Barrier but ranks 0 and 2 called Allreduce
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
total = np.empty(3)
if rank != 1:  # BUG
    request = comm.Iallreduce(np.ones(3), total)
    request.Wait()
comm.Barrier()

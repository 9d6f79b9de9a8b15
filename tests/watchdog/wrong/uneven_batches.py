r"""The data are not divided evenly: some ranks have a batch more, and average its gradient alone.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 0 calls Allreduce\(.*\) but ranks 1 and 2 call bcast
First: rank 0  Allreduce\(op=SUM, 3 x f8\) .*:18
Unchecked: deadlock: .*rank 0 called Allreduce but ranks 1 and 2 called Bcast
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
samples = np.arange(10)[rank::size]
gradient = np.empty(3)
for _epoch in range(2):
    for _sample in samples:  # BUG: 4 samples on rank 0, 3 on the others
        comm.Allreduce(np.ones(3), gradient)
    lr = comm.bcast(0.1)

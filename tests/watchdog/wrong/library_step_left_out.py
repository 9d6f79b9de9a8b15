"""The package's communicator: one rank skips the all-reduce of a step with an empty batch.

Ranks: 3
Said: CollectiveMismatch: on communicator 'world': rank 2 calls broadcast .* but ranks 0 and 1 call all_reduce
First: rank 2  broadcast .*:17
Unchecked: deadlock: .*rank 2 called Bcast but ranks 0 and 1 called Allreduce
"""

import numpy as np

from parallel_dl.mpi import world

comm = world()
batch = np.ones((2 - comm.rank, 3))
if len(batch):  # BUG
    comm.all_reduce(batch.sum(axis=0))
comm.broadcast(np.zeros(3))

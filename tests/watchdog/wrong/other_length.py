r"""The last rank's gradient is shorter.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 2 calls Allreduce\(op=SUM, 9 x f8\) but ranks 0 and 1
First: rank 2  Allreduce\(op=SUM, 9 x f8\) .*:15
Unchecked: rank 2 received more than it asked for in Allreduce
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
gradient = np.ones(10 - rank // 2)  # BUG
comm.Allreduce(MPI.IN_PLACE, gradient)

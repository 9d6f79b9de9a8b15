r"""One rank's array has another type.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 0 calls Bcast\(root=0, 4 x i8\) but ranks
First: rank 0  Bcast\(root=0, 4 x i8\) .*:15
Unchecked: nothing
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x = np.arange(4) if rank == 0 else np.empty(4)  # BUG: integers
comm.Bcast(x, root=0)
print(x)

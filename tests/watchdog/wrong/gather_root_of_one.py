r"""One rank gathers at another root.

Ranks: 4
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 3 calls Gather\(root=3\) but ranks
First: rank 3  Gather\(root=3\) .*:16
Unchecked: nothing
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
root = 3 if rank == 3 else 0  # BUG
everything = np.empty(size) if rank == root else None
comm.Gather(np.full(1, float(rank)), everything, root=root)

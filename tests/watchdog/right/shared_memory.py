"""A window of shared memory: each rank of the machine writes its part, and all read it.

Ranks: 3
Prints: [0, 1, 2]
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
node = comm.Split_type(MPI.COMM_TYPE_SHARED)
window = MPI.Win.Allocate_shared(8 * node.size if node.rank == 0 else 0, 8, comm=node)
buffer, itemsize = window.Shared_query(0)
everything = np.ndarray(buffer=buffer, dtype="i8", shape=(node.size,))
window.Fence()
everything[node.rank] = node.rank
window.Fence()
if node.rank == 0:
    print(everything.tolist())
node.Barrier()
window.Free()
node.Free()

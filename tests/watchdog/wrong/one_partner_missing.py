r"""Waitall of receives, one of which nobody answers.

Ranks: 3
Said: deadlock: rank 2 has ended, and rank 0 waits for it
First: rank 2  has ended
Row: rank 0  waits in Waitall of .*Irecv\(.*source=2, tag=7\).* for rank 2 to send  .*:17
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank == 0:
    buffers = np.empty((2, 3))
    requests = [comm.Irecv(buffers[r - 1], source=r, tag=7) for r in (1, 2)]
    MPI.Request.Waitall(requests)
elif rank == 1:  # BUG: rank 2, too
    comm.Isend(np.ones(3), dest=0, tag=7).Wait()

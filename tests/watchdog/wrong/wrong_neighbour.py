r"""A ring of Sendrecv: one rank expects its message from the wrong side.

Ranks: 4
Said: deadlock: ranks 2 and 3 wait for each other
First: rank 2  waits in Sendrecv\(.*source=3.* for rank 3 to send; rank 1 has sent it .*:16
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x, y = np.full(1, float(rank)), np.empty(1)
left = (rank - 1) % size if rank != 2 else 3  # BUG
for _ in range(3):
    comm.Sendrecv(x, dest=(rank + 1) % size, recvbuf=y, source=left)

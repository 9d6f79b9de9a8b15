r"""Halos by blocking synchronous sends, all to the right first: it would do on a line, not in a ring.

Ranks: 3
Said: deadlock: ranks 0, 1 and 2 wait for each other
First: rank 0  waits in Ssend\(.*dest=1, tag=0\) .*for rank 1 to receive.*:14
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x, y = np.ones(2), np.empty(2)
comm.Ssend(x, dest=(rank + 1) % size)  # BUG
comm.Recv(y, source=(rank - 1) % size)

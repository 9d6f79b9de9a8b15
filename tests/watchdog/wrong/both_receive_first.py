r"""Both receive before they send.

Ranks: 2
Said: deadlock: ranks 0 and 1 wait for each other
First: rank 0  waits in Recv\(float64 \(3,\), source=1, tag=any\) .*for rank 1 to send .*:15
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x = np.full(3, float(rank))
y = np.empty(3)
comm.Recv(y, source=1 - rank)  # BUG
comm.Send(x, dest=1 - rank)

r"""Both send a large array first: small ones would have gone.

Ranks: 2
Said: deadlock: ranks 0 and 1 wait for each other
First: rank 0  waits in Send\(float64 \(1000000,\), dest=1, tag=0\) .*for rank 1 to receive .*:15
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x = np.ones(1_000_000)
y = np.empty_like(x)
comm.Send(x, dest=1 - rank)  # BUG
comm.Recv(y, source=1 - rank)

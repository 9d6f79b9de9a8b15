r"""A receive names a rank that sends nothing.

Ranks: 3
Said: deadlock: ranks 0 and 2 wait for each other
First: rank 0  waits in Recv\(.*source=2, tag=any\) .*for rank 2 to send; rank 1 has sent it a message with tag 0 .*:17
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x = np.zeros(2)
if rank == 1:
    comm.Send(x, dest=0)
elif rank == 0:
    comm.Recv(x, source=2)  # BUG: from 1
comm.Barrier()

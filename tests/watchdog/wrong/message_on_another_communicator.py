r"""Sent on the copy, expected on the original.

Ranks: 2
Said: deadlock: ranks 0 and 1 wait for each other
First: rank 1  waits in Recv\(.*\) on MPI.COMM_WORLD .*on another communicator .*:17
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
x, copy = np.ones(2), comm.Dup()
if rank == 0:
    copy.Send(x, dest=1, tag=3)
else:
    comm.Recv(x, source=0, tag=3)  # BUG
comm.Barrier()

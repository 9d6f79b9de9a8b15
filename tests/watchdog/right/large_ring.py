"""50 MB go round a ring of Sendrecv, and come home as they were.

Ranks: 3
Prints: 6250000 home
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
block = np.full(6_250_000, float(rank))
received = np.empty_like(block)
for _ in range(size):
    comm.Sendrecv(block, dest=(rank + 1) % size, recvbuf=received, source=(rank - 1) % size)
    block, received = received, block
assert (block == rank).all()
requests = [comm.Isend(block, dest=(rank + 1) % size, tag=5), comm.Irecv(received, source=(rank - 1) % size, tag=5)]
MPI.Request.Waitall(requests)
assert (received == (rank - 1) % size).all()
if rank == 0:
    print(len(block), "home")

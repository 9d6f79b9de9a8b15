"""A collective that does not block is begun by one rank before it sends what the others wait for.

Ranks: 3
Prints: [0, 1, 2] 7.0
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
value, received = np.full(1, 7.0 if comm.rank == 0 else 0.0), []
if comm.rank == 0:
    requests = [comm.Ibcast(value, root=0), comm.Ibarrier()]
    for to in range(1, comm.size):
        comm.send(to, dest=to)
else:
    received.append(comm.recv(source=0))
    requests = [comm.Ibcast(value, root=0), comm.Ibarrier()]
MPI.Request.Waitall(requests)
numbers = comm.gather(comm.rank, root=0)
if comm.rank == 0:
    print(numbers, value[0])

"""Waitany over requests of different kinds: a persistent one, whose sender is slow, beside one that comes later.

Ranks: 3
Prints: 0 1
"""

import time

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
if comm.rank == 0:
    buffers = np.zeros(1), np.zeros(1)
    requests = [comm.Recv_init(buffers[0], source=1), comm.Irecv(buffers[1], source=2)]
    requests[0].Start()
    first = MPI.Request.Waitany(requests)
    comm.send("now you", dest=2)
    second = MPI.Request.Waitany(requests)
    print(first, second)
    requests[0].Free()
elif comm.rank == 1:
    time.sleep(2.5)
    comm.Send(np.ones(1), dest=0)
else:
    comm.recv(source=0)
    comm.Send(np.ones(1), dest=0)

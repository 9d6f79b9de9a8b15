"""A parameter server: rank 0 takes gradients from any source, and answers whom the status names.

Ranks: 4
Prints: 30.0
"""

import numpy as np
from mpi4py import MPI

GRADIENT, WEIGHTS, DONE = 1, 2, 3
comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
buffer = np.zeros(5)
if rank == 0:
    weights, working = np.zeros(5), size - 1
    status = MPI.Status()
    while working:
        comm.Probe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        source = status.Get_source()
        if status.Get_tag() == DONE:
            comm.recv(source=source, tag=DONE)
            working -= 1
            continue
        comm.Recv([buffer, MPI.DOUBLE], source=source, tag=GRADIENT, status=status)
        assert status.Get_count(MPI.DOUBLE) == 5
        weights += buffer
        comm.Send([weights, MPI.DOUBLE], dest=source, tag=WEIGHTS)
    print(weights[0])
else:
    for _ in range(10):
        comm.Send([np.ones(5), MPI.DOUBLE], dest=0, tag=GRADIENT)
        comm.Recv([buffer, MPI.DOUBLE], source=0, tag=WEIGHTS)
    comm.send(None, dest=0, tag=DONE)

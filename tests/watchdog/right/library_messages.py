"""The package's messages, split communicators and mpi4py's own calls in one program.

Ranks: 4
Prints: 6.0 [2.0, 4.0]
"""

import numpy as np
from mpi4py import MPI

from parallel_dl.mpi import world

comm = world()
half = comm.split(comm.rank % 2, name="half")
other = comm.rank ^ 1
if comm.rank < other:
    comm.send(np.full(2, float(comm.rank)), other)
    got = comm.receive(other, (2,), float)
else:
    got = comm.receive(other, (2,), float)
    comm.send(np.full(2, float(comm.rank)), other)
assert got[0] == other
total = MPI.COMM_WORLD.allreduce(float(comm.rank))
parts = MPI.COMM_WORLD.gather(float(half.all_reduce(np.full(1, float(comm.rank)))[0]))
if comm.rank == 0:
    print(total, sorted(set(parts)))

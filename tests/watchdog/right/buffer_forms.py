"""The same collectives with all forms of buffers: arrays, [buf, type], [buf, count, type], IN_PLACE, bytes.

Ranks: 3
Prints: 9.0 6 b'abc' 3
"""

import array

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
root = comm.rank == 0
x, total = np.full(3, 1.0), np.zeros(3)
if root:
    comm.Reduce([x, MPI.DOUBLE], [total, 3, MPI.DOUBLE], op=MPI.SUM, root=0)
    comm.Reduce(MPI.IN_PLACE, [total, MPI.DOUBLE])
else:
    comm.Reduce([x, 3, MPI.DOUBLE], None, MPI.SUM, 0)
    comm.Reduce(np.full(3, 3.0), None)
number = array.array("i", [comm.rank + 1])
comm.Allreduce(MPI.IN_PLACE, [number, MPI.INT])
letters = bytearray(b"abc" if root else 3)
comm.Bcast([letters, MPI.BYTE], root=0) if root else comm.Bcast(letters)
gathered = np.zeros((comm.size, 2), dtype="i4")
gathered[comm.rank] = comm.rank
comm.Allgather(MPI.IN_PLACE, gathered)
assert gathered[:, 0].tolist() == [0, 1, 2]
flags = np.array([True, comm.rank == 1])
comm.Allreduce(MPI.IN_PLACE, flags, op=MPI.LAND)
counted = np.empty(1, dtype="i8")
comm.Allreduce(np.ones(1, dtype="i8"), counted)
if root:
    print(total[0], number[0], bytes(letters), counted[0])

"""Operations of one's own, on arrays and on objects: the greatest value and where it is.

Ranks: 4
Prints: [9.0, 3.0] (3, 'rank 3') ['a0', 'a1', 'a2', 'a3']
"""

import numpy as np
from mpi4py import MPI


def greater(a, b, datatype):
    a, b = np.frombuffer(a, dtype="d"), np.frombuffer(b, dtype="d")
    b[:] = np.where(a[::2].repeat(2) > b[::2].repeat(2), a, b)


comm = MPI.COMM_WORLD
op = MPI.Op.Create(greater, commute=True)
best = np.empty(2)
comm.Allreduce(np.array([comm.rank**2, comm.rank], dtype="d"), best, op=op)
op.Free()
last = comm.allreduce((comm.rank, f"rank {comm.rank}"), op=max)
names = comm.allreduce([f"a{comm.rank}"], op=lambda a, b: a + b)
pair = comm.allreduce((comm.rank, comm.rank), op=MPI.MAXLOC)
assert pair == (3, 3)
if comm.rank == 0:
    print(best.tolist(), last, names)

"""Prefix sums: scan and exscan tell each rank where its part of the whole begins.

Ranks: 4
Prints: [(0, 3), (3, 5), (8, 2), (10, 4)]
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
length = [3, 5, 2, 4][comm.rank]
begin = comm.exscan(length)
begin = 0 if comm.rank == 0 else begin
assert comm.scan(length) == begin + length
ends, starts = np.empty(1, dtype=int), np.zeros(1, dtype=int)
comm.Scan(np.array([length]), ends)
comm.Exscan(np.array([length]), starts, op=MPI.SUM)
assert (ends[0], starts[0]) == (begin + length, begin)
parts = comm.gather((begin, length))
if comm.rank == 0:
    print(parts)

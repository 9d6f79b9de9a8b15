"""Rows dealt out in unequal parts: Scatterv, Gatherv and Allgatherv with counts and displacements.

Ranks: 3
Prints: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
n = comm.bcast(10 if rank == 0 else None, root=0)
counts = [n // size + (r < n % size) for r in range(size)]
displacements = np.insert(np.cumsum(counts), 0, 0)[:-1]
everything = np.arange(n, dtype="d") if rank == 0 else None
mine = np.empty(counts[rank])
comm.Scatterv([everything, counts, displacements, MPI.DOUBLE], mine, root=0)
mine **= 2
result = np.empty(n) if rank == 0 else None
comm.Gatherv(mine, [result, (counts, displacements)], root=0)
on_all = np.empty(n)
comm.Allgatherv(mine, [on_all, counts, displacements, MPI.DOUBLE])
if rank == 0:
    assert np.array_equal(result, on_all)
    print(result.astype(int).tolist())

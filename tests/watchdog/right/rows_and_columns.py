"""Split into rows and columns of a grid: a matrix product in pieces, with sums along the columns.

Ranks: 4
Prints: equal
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
i, j = divmod(comm.rank, 2)
row = comm.Split(color=i, key=j)
column = comm.Split(color=j, key=i)
row.Set_name(f"row {i}")
a, b = np.arange(16.0).reshape(4, 4), np.arange(16.0)[::-1].reshape(4, 4)
mine_a, mine_b = (np.ascontiguousarray(c[2 * i :][:2, 2 * j :][:, :2]) for c in (a, b))
product = np.zeros((2, 2))
for k in range(2):
    piece_a, piece_b = mine_a.copy(), mine_b.copy()
    row.Bcast(piece_a, root=k)
    column.Bcast(piece_b, root=k)
    product += piece_a @ piece_b
only_first = comm.Split(color=0 if row.rank == 0 else MPI.UNDEFINED)
strip = np.empty((2, 2, 2)) if row.rank == 0 else None
row.Gather(product, strip, root=0)
if only_first != MPI.COMM_NULL:
    strips = only_first.gather(np.hstack(strip))
    if only_first.rank == 0:
        print("equal" if np.array_equal(np.vstack(strips), a @ b) else "different")

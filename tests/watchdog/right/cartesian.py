"""A Cartesian grid: Shift, PROC_NULL at the rim, rows and columns by Sub, halos by Isend and Irecv.

Ranks: 4
Prints: rows [1, 5] columns [2, 4] neighbours 8
"""

import numpy as np
from mpi4py import MPI

cart = MPI.COMM_WORLD.Create_cart(MPI.Compute_dims(4, 2), periods=[False, False], reorder=True)
row, column = cart.Sub([False, True]), cart.Sub([True, False])
mine, requests, halos = np.full(3, float(cart.rank)), [], {}
for axis in (0, 1):
    for step in (-1, 1):
        source, dest = cart.Shift(axis, step)
        tag = 10 * axis + step + 1
        halos[axis, step] = np.full(3, -1.0)
        requests.append(cart.Irecv(halos[axis, step], source=source, tag=tag))
        requests.append(cart.Isend(mine, dest=dest, tag=tag))
MPI.Request.Waitall(requests)
found = sum(halo[0] >= 0 for halo in halos.values())
assert found == 2
neighbours = cart.allreduce(found)
rows, columns = cart.allgather(row.allreduce(cart.rank)), cart.allgather(column.allreduce(cart.rank))
if cart.rank == 0:
    print("rows", sorted(set(rows)), "columns", sorted(set(columns)), "neighbours", neighbours)
row.Free()
column.Free()
cart.Free()

"""A transpose by Alltoall, buckets by Alltoallv, a sum in parts by Reduce_scatter.

Ranks: 3
Prints: [0, 10, 20] [0, 1, 2] 3.0
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
row, column = 10 * rank + np.arange(size), np.empty(size, dtype=int)
comm.Alltoall(row, column)
send_counts = np.array([rank + to for to in range(size)])
receive_counts = np.empty_like(send_counts)
comm.Alltoall(send_counts, receive_counts)
out, received = np.full(send_counts.sum(), float(rank)), np.empty(receive_counts.sum())
starts = [np.concatenate([[0], np.cumsum(counts)[:-1]]) for counts in (send_counts, receive_counts)]
comm.Alltoallv([out, send_counts, starts[0], MPI.DOUBLE], [received, receive_counts, starts[1], MPI.DOUBLE])
parts = [1, 2, 3]
mine, block = np.empty(parts[rank]), np.empty(2)
comm.Reduce_scatter(np.ones(6), mine, recvcounts=parts)
comm.Reduce_scatter_block(np.ones(2 * size), block)
objects = comm.alltoall([rank] * size)
if rank == 0:
    print(column.tolist(), objects, mine[0])

"""Odd-even transposition sort: neighbours exchange and keep the smaller or the greater half.

Ranks: 4
Prints: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
mine = np.sort(np.random.default_rng(1).permutation(12).reshape(size, -1)[rank])
other = np.empty_like(mine)
for phase in range(size):
    partner = rank + 1 if (phase + rank) % 2 == 0 else rank - 1
    if not 0 <= partner < size:
        continue
    if rank % 2 == 0:
        comm.Send(mine, dest=partner)
        comm.Recv(other, source=partner)
    else:
        comm.Recv(other, source=partner)
        comm.Send(mine, dest=partner)
    both = np.sort(np.concatenate([mine, other]))
    mine = both[: len(mine)] if rank < partner else both[len(mine) :]
everything = comm.gather(mine, root=0)
if rank == 0:
    print(np.concatenate(everything).tolist())

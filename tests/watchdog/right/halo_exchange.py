"""Heat on a rod: halos by Sendrecv with PROC_NULL at the ends, the greatest change by allreduce.

Ranks: 4
Prints: 1.00
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
left = rank - 1 if rank > 0 else MPI.PROC_NULL
right = rank + 1 if rank < size - 1 else MPI.PROC_NULL
u = np.zeros(8 + 2)
if rank == 0:
    u[0] = 1.0
if rank == size - 1:
    u[-1] = 1.0
for step in range(20_000):
    comm.Sendrecv(u[1:2], dest=left, sendtag=1, recvbuf=u[-1:], source=right, recvtag=1)
    comm.Sendrecv(u[-2:-1], dest=right, sendtag=2, recvbuf=u[:1], source=left, recvtag=2)
    new = (u[:-2] + u[2:]) / 2
    change = np.abs(new - u[1:-1]).max()
    u[1:-1] = new
    if step % 50 == 0 and comm.allreduce(change, op=MPI.MAX) < 1e-6:
        break
mean = comm.allreduce(u[1:-1].mean()) / size
if rank == 0:
    print(f"{mean:.2f}")

"""One-sided: Put and Get between fences, and a counter of tasks under a lock.

Ranks: 4
Prints: [3.0, 0.0, 1.0, 2.0] 12
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
mine = np.zeros(1)
window = MPI.Win.Create(mine, comm=comm)
window.Fence()
window.Put(np.array([float(rank)]), (rank + 1) % size)
window.Fence()
values = comm.gather(mine[0])
window.Free()
memory = MPI.Win.Allocate(8 if rank == 0 else 0, 8, comm=comm)
if rank == 0:
    np.frombuffer(memory, dtype="i8")[0] = 0
comm.Barrier()
done, one, number = 0, np.ones(1, dtype="i8"), np.empty(1, dtype="i8")
while True:
    memory.Lock(0)
    memory.Fetch_and_op(one, number, 0)
    memory.Unlock(0)
    if number[0] >= 12:
        break
    done += 1
total = comm.reduce(done)
memory.Free()
if rank == 0:
    print([float(value) for value in values], total)

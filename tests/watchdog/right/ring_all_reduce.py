"""A ring all-reduce by hand: reduce-scatter, then all-gather, with isend and irecv of pieces.

Ranks: 4
Prints: 40.0
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
left, right = (rank - 1) % size, (rank + 1) % size
pieces = np.array_split(np.full(10, rank + 1.0), size)
for step in range(size - 1):
    send = comm.Isend(pieces[(rank - step) % size], dest=right, tag=step)
    place = (rank - step - 1) % size
    got = np.empty_like(pieces[place])
    comm.Irecv(got, source=left, tag=step).Wait()
    send.wait()
    pieces[place] += got
for step in range(size - 1):
    request = comm.isend(pieces[(rank + 1 - step) % size], right)
    pieces[(rank - step) % size] = comm.irecv(source=left).wait()
    request.wait()
total = np.concatenate(pieces)
assert (total == 10).all()
if rank == 0:
    print(total[:4].sum())

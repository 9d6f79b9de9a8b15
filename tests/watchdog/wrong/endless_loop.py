"""One rank never leaves its loop.

Ranks: 3
Timeout: 13
Said: took more than 13 s
Notice: rank 1 has been in its own code for 10 s, at endless_loop.py:1[456]; ranks 0 and 2 wait for it
First: rank 1  is in its own code .*:1[456]
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
error = 1.0
while rank == 1 and error > 0:  # BUG
    error = max(error / 2, 1e-9)
comm.Barrier()

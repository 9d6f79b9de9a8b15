r"""One rank waits at the barrier of all, the other of its row at that of the row.

Ranks: 4
Said: deadlock: ranks 0 and 1 wait for each other
First: rank 1  waits in Barrier\(\) on a part of MPI.COMM_WORLD for rank 0 .*:14
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
row = comm.Split(rank // 2, rank)
if rank == 1:
    row.Barrier()  # BUG
comm.Barrier()

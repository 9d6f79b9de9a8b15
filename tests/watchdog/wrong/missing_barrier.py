r"""One rank does not come to the barrier, and ends.

Ranks: 4
Said: deadlock: rank 2 has ended, and ranks 0, 1 and 3 wait for it
First: rank 2  has ended
Row: rank 0  waits in Barrier\(\) on MPI.COMM_WORLD for rank 2 .*:14
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank != 2:
    comm.Barrier()  # BUG

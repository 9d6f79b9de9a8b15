r"""scatter of a list with fewer parts than ranks.

Ranks: 3
Said: rank 0 raised ValueError: expecting 3 items, got 2 \(scatter_of_too_few.py:11\)
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
part = comm.scatter([1, 2] if rank == 0 else None, root=0)  # BUG
comm.Barrier()

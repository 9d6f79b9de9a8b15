"""Split is called by those alone that want the new communicator.

Ranks: 4
Said: deadlock: .*|CollectiveMismatch: .*
First: rank [01]  .*
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank >= 2:
    workers = comm.Split(color=1, key=rank)  # BUG
    workers.Barrier()
comm.Barrier()

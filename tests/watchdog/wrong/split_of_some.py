r"""Split is called by those alone that want the new communicator.

Ranks: 4
Said: CollectiveMismatch: .*: ranks 0 and 1 call Barrier\(\) but ranks 2 and 3 call Split
First: rank 0  Barrier\(\) .*:16
Unchecked: deadlock: .*: ranks 0 and 1 called Barrier but ranks 2 and 3 called Split
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank >= 2:
    workers = comm.Split(color=1, key=rank)  # BUG
    workers.Barrier()
comm.Barrier()

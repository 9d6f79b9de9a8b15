r"""Each rank takes itself for the root.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 0 calls bcast\(root=0\) but .*
First: rank 0  bcast\(root=0\) .*:13
Unchecked: nothing
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
seed = comm.bcast(rank, root=rank)  # BUG
comm.Barrier()

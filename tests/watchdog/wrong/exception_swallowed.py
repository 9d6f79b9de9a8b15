r"""An exception on one rank is caught, and its collective is left out.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 2 calls Barrier\(\) but ranks 0 and 1 call allreduce
First: rank 2  Barrier\(\) .*:18
Unchecked: nothing
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
parts = {0: 1.0, 1: 2.0}
try:
    mean = comm.allreduce(parts[rank]) / size  # BUG: a KeyError on rank 2
except KeyError:
    mean = 0.0
comm.Barrier()

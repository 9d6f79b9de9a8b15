r"""Only the root calls bcast; the others expect a message.

Ranks: 3
Said: deadlock: .*
First: rank 0  waits in bcast\(.*for ranks 1 and 2 .*:13
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank == 0:
    comm.bcast({"lr": 0.1}, root=0)
else:
    parameters = comm.recv(source=0)  # BUG

"""More messages are sent than received.

Ranks: 2
Told: rank 0 never received 2 messages from rank 1 with tag 5 on MPI.COMM_WORLD
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank == 1:
    for step in range(4):
        comm.send(step, dest=0, tag=5)
else:
    for _ in range(2):  # BUG
        comm.recv(source=1, tag=5)

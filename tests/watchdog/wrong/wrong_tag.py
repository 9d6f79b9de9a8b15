r"""The receiver waits for another tag than that which was sent.

Ranks: 3
Said: deadlock: ranks 0 and 1 wait for each other
First: rank 1  waits in recv\(source=0, tag=12\) .*; rank 0 has sent it a message with tag 11 .*:15
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank == 0:
    comm.send("data", dest=1, tag=11)
elif rank == 1:
    print(comm.recv(source=0, tag=12))  # BUG
comm.Barrier()

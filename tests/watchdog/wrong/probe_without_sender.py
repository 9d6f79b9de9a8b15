r"""A probe for a message that the sender has addressed to another rank.

Ranks: 3
Said: deadlock: ranks 0 and 2 wait for each other
First: rank 2  waits in Probe\(source=0, tag=4\) .*; rank 0 has sent a message with tag 4 to rank 1 instead .*:16
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
status = MPI.Status()
if rank == 0:
    comm.send("for you", dest=1, tag=4)  # BUG: to 2
elif rank == 2:
    comm.Probe(source=0, tag=4, status=status)
    comm.recv(source=0, tag=4)
comm.Barrier()

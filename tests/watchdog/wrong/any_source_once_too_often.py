r"""The server expects one message more than its workers send.

Ranks: 4
Said: deadlock: ranks 1, 2 and 3 have ended, and rank 0 waits for them
First: rank 0  waits in recv\(source=any, tag=any\) .*for any rank to send .*:15
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank == 0:
    total = 0
    for _ in range(size):  # BUG: size - 1
        total += comm.recv(source=MPI.ANY_SOURCE)
    print(total)
else:
    comm.send(rank, dest=0)

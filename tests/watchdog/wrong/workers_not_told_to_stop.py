r"""A task farm whose master ends without telling the last worker to stop.

Ranks: 3
Said: deadlock: rank 0 has ended, and rank 2 waits for it
First: rank 0  has ended; its last call: .*:16
Row: rank 2  waits in recv\(source=0, tag=any\) .*:18
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
if rank == 0:
    for task in range(4):
        comm.send(task, dest=1 + task % 2)
    comm.send(None, dest=1)  # BUG: to 2, too
else:
    while (task := comm.recv(source=0)) is not None:
        task += 1

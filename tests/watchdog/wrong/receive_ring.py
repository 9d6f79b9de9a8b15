r"""A ring in which every rank receives from its left first.

Ranks: 4
Said: deadlock: ranks 0, 1, 2 and 3 wait for each other
First: rank 0  waits in recv\(source=3, tag=any\) .*:12
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
got = comm.recv(source=(rank - 1) % size)  # BUG
comm.send(rank, dest=(rank + 1) % size)

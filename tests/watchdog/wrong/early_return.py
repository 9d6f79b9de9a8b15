r"""One rank returns from the training loop when its own loss is small.

Ranks: 3
Said: CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 1 calls gather\(root=0\) but ranks 0 and 2 call
First: rank 1  gather\(root=0\) .*:23
Unchecked: deadlock: .*rank 1 called Gather but ranks 0 and 2 called Allreduce
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()


def train():
    for step in range(4):
        loss = comm.allreduce(1.0) / (step + 1 + rank)
        if rank == 1 and loss < 1:
            return  # BUG: its own loss decides


train()
comm.gather(rank)

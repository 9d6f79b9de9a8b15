"""mpi4py.futures: rank 0 maps over the other ranks, and all go on together.

Ranks: 3
Prints: [0, 1, 4, 9, 16, 25] 3
"""

from mpi4py import MPI
from mpi4py.futures import MPICommExecutor


def square(x):
    return x * x


if __name__ == "__main__":
    comm = MPI.COMM_WORLD
    squares = None
    with MPICommExecutor(comm, root=0) as executor:
        if executor is not None:
            squares = list(executor.map(square, range(6)))
    ranks = comm.allreduce(1)
    if comm.rank == 0:
        print(squares, ranks)

"""`sys.exit(main())` on every rank, where rank 0 writes results for a while after the others have ended.

Ranks: 3
Prints: written 3
"""

import sys
import time

from mpi4py import MPI


def main():
    comm = MPI.COMM_WORLD
    total = comm.reduce(1)
    if comm.rank == 0:
        time.sleep(4.5)
        print("written", total)


if __name__ == "__main__":
    sys.exit(main())

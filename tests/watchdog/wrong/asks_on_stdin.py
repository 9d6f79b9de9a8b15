r"""One rank reads from the keyboard: there is none.

Ranks: 2
Said: rank 0 raised EOFError: EOF when reading a line \(asks_on_stdin.py:11\)
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
steps = int(input("steps? ")) if rank == 0 else None  # BUG
steps = comm.bcast(steps)

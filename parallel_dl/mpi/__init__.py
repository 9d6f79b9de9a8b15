"""Movement between ranks; the one package that imports mpi4py.

To read in this order: startup, buffers, communicator, checked.
"""

from parallel_dl.mpi.communicator import Communicator, Pending, alone, world
from parallel_dl.mpi.startup import MPI

__all__ = ["MPI", "Communicator", "Pending", "alone", "world"]

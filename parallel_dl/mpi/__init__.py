"""Movement between ranks; the one package that imports mpi4py.

To read in this order: scratch and startup (how MPI is imported), buffers and communicator (arrays), notes and checked
(the same with checks), mesh (communicators along axes), collectives (tensors), window (sums in shared memory), ledger
(what is sent, counted), stress (calls early and late), abort (one rank's failure ends all), one_rank (a serial program
among the ranks).
"""

from parallel_dl.mpi import abort, collectives, stress
from parallel_dl.mpi.abort import finish
from parallel_dl.mpi.checked import CheckedCommunicator, CollectiveMismatch, MessageMismatch
from parallel_dl.mpi.communicator import Communicator, Pending, alone, world
from parallel_dl.mpi.ledger import Ledger, LedgerRow, gather_rows
from parallel_dl.mpi.mesh import Mesh
from parallel_dl.mpi.one_rank import one_rank
from parallel_dl.mpi.startup import MPI, library_version, one_blas_thread
from parallel_dl.mpi.stress import RaceFound
from parallel_dl.mpi.window import NotEnoughSharedMemory, SharedWindow

__all__ = [
    "MPI",
    "CheckedCommunicator",
    "CollectiveMismatch",
    "Communicator",
    "Ledger",
    "LedgerRow",
    "Mesh",
    "MessageMismatch",
    "NotEnoughSharedMemory",
    "Pending",
    "RaceFound",
    "SharedWindow",
    "alone",
    "collectives",
    "finish",
    "gather_rows",
    "library_version",
    "one_blas_thread",
    "one_rank",
    "stress",
    "world",
]

abort.install()
stress.install()

"""Movement between ranks; the only package that imports mpi4py.

To read in this order:

    scratch.py, startup.py    how MPI is imported
    rank.py                   what a rank has for itself
    buffers.py                arrays as MPI takes them
    transport.py              the calls of mpi4py that are used, and what each passes to other ranks
    facts.py, calls.py        the one path of every call, and its observers
    observers/                calls compared, counted, timed, recorded
    group.py                  a communicator itself
    pending.py, messages.py   from one rank to another
    copies.py, shards.py, reductions.py    collectives on arrays
    communicator.py           all of that together, and the world
    mesh.py                   communicators along axes
    collectives.py            collectives on tensors, with their adjoints
    window.py                 sums in shared memory
    places.py, stress.py, stressed_window.py    calls early and late
    abort.py                  one rank's failure ends all
    watched_world.py          hangs under a user's own mpirun
    one_rank.py               a serial program among the ranks
"""

from parallel_dl.mpi import abort, collectives, stress, watched_world
from parallel_dl.mpi.abort import finish
from parallel_dl.mpi.calls import Observer, collective
from parallel_dl.mpi.communicator import Communicator, alone, world
from parallel_dl.mpi.mesh import Mesh
from parallel_dl.mpi.observers import (
    CollectiveMismatch,
    FlightRecorder,
    Ledger,
    LedgerRow,
    MessageMismatch,
    Timeline,
    gather_rows,
)
from parallel_dl.mpi.one_rank import one_rank
from parallel_dl.mpi.pending import Pending
from parallel_dl.mpi.startup import MPI, library_version, one_blas_thread
from parallel_dl.mpi.stress import RaceFound
from parallel_dl.mpi.window import NotEnoughSharedMemory, SharedWindow

__all__ = [
    "MPI",
    "CollectiveMismatch",
    "Communicator",
    "FlightRecorder",
    "Ledger",
    "LedgerRow",
    "Mesh",
    "MessageMismatch",
    "NotEnoughSharedMemory",
    "Observer",
    "Pending",
    "RaceFound",
    "SharedWindow",
    "Timeline",
    "alone",
    "collective",
    "collectives",
    "finish",
    "gather_rows",
    "library_version",
    "one_blas_thread",
    "one_rank",
    "stress",
    "world",
]

abort.watch_exceptions()
watched_world.wrap()

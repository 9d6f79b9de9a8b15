"""A communicator: the ranks that work together, and the movements of NumPy arrays between them.

Every movement takes arrays of any dtype (except Python objects), byte and memory order, also empty ones, and returns
C-contiguous arrays in native byte order. MPI counts with C ints. all_reduce, reduce, broadcast, send, receive and shift
cut larger arrays into parts; the others raise one OverflowError, on every rank, before anything is sent. If only
the root can see that a call is wrong, it tells the others, and all ranks raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from parallel_dl.mpi import abort, stress, watched_world
from parallel_dl.mpi.observers.ledger import Ledger
from parallel_dl.mpi.rank import mine
from parallel_dl.mpi.reductions import Reductions
from parallel_dl.mpi.startup import MPI, limit_blas_threads


class Communicator(Reductions):
    """The ranks of one mpi4py communicator, with collectives on arrays.

    With `checked=True` (the default if the environment variable PARALLEL_DL_CHECKED is 1), the ranks compare their
    calls before making them; creating such a communicator is itself a collective call. `ledger` counts what is passed
    to MPI (`mpi.observers.ledger`), under `axis`, the mesh axis along which the communicator runs: "pipe", "data" or
    "model", or "world" for none of these. `observers` see its calls (`mpi.observers`).

    In the signatures `Array` is np.ndarray, and `Sizes` the lengths by rank, `Sequence[int] | None`, None being even
    ones; `Call`, `Caller` and `Passed` are what observers see (`mpi.calls`, `mpi.transport`), `Fact` is in `mpi.facts`.

    Duplicates, splits and the communicators of a mesh inherit all of this, and the label. `mpi` may be another
    Communicator: the new one then has the same ranks and inherits what is not given, except `checked`.
    """


class Own:
    """The communicators that every rank has."""

    world: Communicator | None = None
    alone: Communicator | None = None


def world() -> Communicator:
    """All ranks that were started together. The first call is collective.

    From then on, an uncaught `sys.exit` of one rank also ends all others (`mpi.abort`). The call also gives each rank's
    BLAS its share of the cores, reads PARALLEL_DL_STRESS, and under your own mpirun starts the watchdog, which names
    hangs (PARALLEL_DL_WATCHDOG=0 leaves it out).
    """
    own = mine(Own)
    if own.world is None:
        abort.watch_exits()
        limit_blas_threads(MPI)
        watched_world.start()
        stress.install()
        own.world = Communicator(MPI.COMM_WORLD, name="world")
    return own.world


@contextmanager
def observed_world(checked: bool | None = None, ledger: Ledger | None = None) -> Iterator[Communicator]:
    """Inside, `world()` is one that compares its calls, or enters them in a ledger. All ranks together."""
    plain, own = world(), mine(Own)
    if checked is not None or ledger is not None:
        own.world = Communicator(plain.mpi, checked=checked, name=plain.name, ledger=ledger)
    try:
        yield world()
    finally:
        own.world = plain


def alone() -> Communicator:
    """A communicator of this rank alone."""
    own = mine(Own)
    if own.alone is None:
        own.alone = Communicator(MPI.COMM_SELF, name="alone")
    return own.alone

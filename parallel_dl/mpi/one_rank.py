"""One rank alone, while a serial program runs inside a job of several: it cannot tell that there are others.

A layer may ask `world().size`, `MPI.COMM_WORLD.rank`, a communicator that it has kept, or the launcher's variables. In
the context of `one_rank()` all of them answer as in a job of one rank. The handles are exchanged inside the objects, so
it does not matter who has them and under which name. Communicators that were made with mpi4py alone are found where
functions, classes and modules of Python have them, not inside other objects. What a program has read before (a
number in a global variable, or in a module that was made earlier) stays as it was read.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import CellType
from typing import Any

from parallel_dl.mpi.communicator import Communicator, Own
from parallel_dl.mpi.rank import mine
from parallel_dl.mpi.startup import MPI

# what launchers tell a rank about itself, and what they would tell the only one
_OF_ONE_RANK = {
    **dict.fromkeys(("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"), "1"),
    **dict.fromkeys(("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS", "SLURM_NPROCS"), "1"),
    **dict.fromkeys(("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_NODE_RANK"), "0"),
    **dict.fromkeys(("PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID", "SLURM_PROCID", "SLURM_LOCALID"), "0"),
    **dict.fromkeys(("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"), "0"),
}


@contextmanager
def one_rank() -> Iterator[None]:
    """Inside, every communicator that is found is of this rank alone; afterwards all is as it was. Not collective."""
    with ExitStack() as undo:
        for name, value in _OF_ONE_RANK.items():
            if name in os.environ:
                undo.callback(os.environ.__setitem__, name, os.environ[name])
                os.environ[name] = value
        found, raw = _communicators()
        for comm in found:
            undo.callback(_restore, comm, dict(vars(comm)))
        for mpi in raw:
            undo.callback(_exchange, mpi, _exchange(mpi, _handle(_self())))
        for comm in found:
            comm._become_alone()
        own = mine(Own)
        if own.world is None:  # one that is made in here is not to be the world afterwards
            undo.callback(setattr, own, "world", None)
        yield


def _communicators() -> tuple[list[Communicator], list[MPI.Intracomm]]:
    """Those of several ranks: of the package, and what mpi4py has of them and beside them."""
    gc.collect()  # what nobody has any more may hold the handle of a communicator that is freed: asking it crashes
    found: list[Communicator] = []
    own: list[MPI.Intracomm] = []
    raw: list[Any] = [MPI.COMM_WORLD]
    for one in gc.get_objects():
        kind = type(one)  # not isinstance: an object may answer for its __class__ with code of its own
        if kind is CellType:  # what a function has from the function around it
            raw += [one.cell_contents] if _is_filled(one) else []
        elif issubclass(kind, Communicator):
            if vars(one).get("size", 1) > 1:
                found.append(one)
                own.append(one.mpi)  # not asked for its size: it may be a copy of one that is freed
        elif issubclass(kind, type):
            raw += vars(one).values()
    for module in list(sys.modules.values()):
        raw += list(getattr(module, "__dict__", {}).values())
    several = {id(mpi): mpi for mpi in own if mpi != MPI.COMM_NULL}
    for mpi in raw:
        if issubclass(type(mpi), MPI.Intracomm) and mpi != MPI.COMM_NULL and (mpi in own or mpi.size > 1):
            several[id(mpi)] = mpi
    return found, list(several.values())


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _restore(comm: Communicator, before: dict[str, Any]) -> None:
    vars(comm).clear()
    vars(comm).update(before)


@functools.cache
def _self() -> MPI.Intracomm:
    """This rank in a communicator of its own, in which no message of COMM_SELF is received."""
    return MPI.COMM_SELF.Dup()


def _handle(mpi: MPI.Comm) -> bytes:
    return ctypes.string_at(MPI._addressof(mpi), MPI._sizeof(MPI.Comm))


def _exchange(mpi: MPI.Comm, handle: bytes) -> bytes:
    """Makes the object one of another communicator; returns the handle that it had."""
    before = _handle(mpi)
    ctypes.memmove(MPI._addressof(mpi), handle, len(handle))
    return before

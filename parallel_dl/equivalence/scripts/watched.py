"""`watch`: what a program adds to its record, to be compared with other numbers of ranks, or with another program."""

from __future__ import annotations

import atexit
import os
from typing import Any

import numpy as np

from parallel_dl.equivalence.scripts.files import FOLDER_VARIABLE, WATCHED, Part, Update, begin, write
from parallel_dl.errors import InputError
from parallel_dl.launch.environment import inside_mpirun, mpirun_rank
from parallel_dl.mesh import Partial, Replicated, Shard

Placement = Partial | Replicated | Shard


class _Record:
    """What was given to `watch` since the last update."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.parts: dict[str, Part] = {}
        self.is_begun = False
        self.written = 0
        self.has_optimizer = False
        """whether an optimizer's updates end the steps; else a name that comes again does"""


record = _Record()


def watch(name: str, array: Any, placement: Placement | None = None) -> None:
    """Adds an array to what `parallel-dl compare` compares; does nothing outside of it, and where no record is kept.

    A program that `compare` cannot start, such as one of PyTorch under torchrun, keeps a record where the environment
    variable PARALLEL_DL_RECORD names a folder for it; `parallel-dl diff` compares two of them.

    `array` is anything that NumPy can read (`__array__`), such as a PyTorch tensor. `placement` says what each rank has
    of it: `Replicated()`, the same on all, which is the default; `Partial()`, a summand; `Shard(axis, sizes)`, a slice.
    What is watched belongs to the update that follows. In a program without an optimizer of parallel_dl a name that
    comes again begins the next update. InputError for another placement.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return
    if placement is not None and not isinstance(placement, Placement):
        raise InputError(f"watch({name!r}): placement {placement!r}; expected Replicated(), Partial() or Shard(axis)")
    if not record.is_begun:
        record.is_begun = True
        begin(folder, rank_here())
        atexit.register(end)
    if name in record.arrays and not record.has_optimizer:
        end_update(folder)
    detached = array.detach() if hasattr(array, "detach") else array
    values = np.array(detached)
    record.arrays[name] = values
    record.parts[name] = _part(values.shape, placement or Replicated())


def rank_here() -> int:
    """This process's rank: as mpirun, or else torchrun, tells it."""
    told = os.environ.get("RANK", "")
    return int(told) if not inside_mpirun() and told.isdigit() else mpirun_rank()


def _part(shape: tuple[int, ...], placement: Placement) -> Part:
    if isinstance(placement, Shard):
        return Part((), (), "shard", placement.axis)
    return Part(shape, (), "partial" if isinstance(placement, Partial) else "replicated")


def end_update(folder: str, update: Update | None = None) -> int:
    """Writes an update, with what was watched before it; returns how many there are now."""
    update = update or Update({})
    for name, array in record.arrays.items():
        update.arrays[f"{WATCHED}/{name}"] = array
        update.parts[name] = record.parts[name]
    record.arrays, record.parts = {}, {}
    write(folder, rank_here(), record.written, update)
    record.written += 1
    return record.written


def end() -> None:
    """The program has ended: what was watched last is an update of its own, unless an optimizer ends them."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None and record.arrays and not record.has_optimizer:
        end_update(folder)

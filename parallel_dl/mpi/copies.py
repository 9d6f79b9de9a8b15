"""Copies one rank's array or object to every rank, or every rank's object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.mpi import buffers
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.calls import collective
from parallel_dl.mpi.facts import named_type
from parallel_dl.mpi.group import Group
from parallel_dl.mpi.startup import MPI
from parallel_dl.mpi.transport import plain


class Copies(Group):
    """Broadcasts, and Python objects."""

    @collective(own=("array",), dtype=named_type)
    def broadcast(
        self, array: Array | None, root: int = 0, shape: tuple[int, ...] | None = None, dtype: Any = None
    ) -> Array:
        """`root`'s array on every rank (not a copy on `root` itself). The other ranks' arrays are ignored.

        If all ranks know both `shape` and `dtype`, giving them saves the message that announces them. ValueError or
        TypeError on every rank for an array with a different shape or type, or one that cannot be sent.
        """
        own = None

        def described() -> tuple[tuple[int, ...], np.dtype]:
            nonlocal own
            own = buffers.contiguous(array)
            as_dtype = own.dtype if dtype is None else buffers.native(dtype)
            as_shape = own.shape if shape is None else tuple(shape)
            if (own.dtype, own.shape) != (as_dtype, as_shape):
                raise ValueError(f"broadcast of {own.dtype} {own.shape}, announced as {as_dtype} {as_shape}")
            return own.shape, own.dtype

        if shape is None or dtype is None:
            shape, dtype = self._told_by(root, described)
        else:
            self._agreed_by(root, described)
        if own is None:
            own = np.empty(shape, buffers.native(dtype))
        for piece in buffers.pieces(buffers.on_the_wire(own)):
            self.transport.Bcast(piece, root)
        return own

    def _told_by(self, root: int, say: Callable[[], Any]) -> Any:
        """The result of `say()` on `root`, on every rank; if it raises an error there, all ranks raise it."""
        told: Any = None
        if self.rank == root:
            try:
                told = say()
            except (TypeError, ValueError) as error:
                told = error
        told = self.transport.bcast(told, root)
        if isinstance(told, Exception):
            raise told
        return told

    def _agreed_by(self, root: int, say: Callable[[], Any]) -> None:
        """Raises on every rank what `say()` raises on `root`; where it raises nothing, that costs one byte."""
        wrong, error = np.zeros(1, np.uint8), None
        if self.rank == root:
            try:
                say()
            except (TypeError, ValueError) as found:
                wrong[0], error = 1, found
        plain(self.mpi).Bcast(wrong, root)  # no ledger enters it
        if wrong[0]:
            raise self.transport.bcast(error, root)

    @collective
    def all_gather_object(self, thing: Any) -> list[Any]:
        """Every rank's object (pickled), by rank; TypeError on every rank if one of them cannot be pickled."""
        things = self._with_pickle(self.transport.allgather, thing)
        for rank, found in enumerate(things):
            if isinstance(found, _NoPickle):
                raise TypeError(f"all_gather_object: rank {rank} has {found.text}")
        return things

    @collective
    def broadcast_object(self, thing: Any, root: int = 0) -> Any:
        """`root`'s object (pickled) on every rank; TypeError on every rank if it cannot be pickled."""
        thing = self._with_pickle(lambda thing: self.transport.bcast(thing, root), thing)
        if isinstance(thing, _NoPickle):
            raise TypeError(f"broadcast_object: rank {root} has {thing.text}")
        return thing

    def _with_pickle(self, exchange: Callable[[Any], Any], thing: Any) -> Any:
        """`exchange(thing)`; with a `_NoPickle` in its place if it cannot be pickled, since the others wait for it."""
        try:
            return exchange(thing)
        except MPI.Exception:
            raise
        except Exception:
            try:
                MPI.pickle.dumps(thing)
            except Exception as error:
                return exchange(_NoPickle(f"{_article(type(thing).__name__)}, which cannot be pickled ({error})"))
            raise


class _NoPickle:
    """Stands for an object that cannot be sent, and says which it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"

"""Notes: what a message holds, sent ahead of it, so that the receiver can compare it with what it expects."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from parallel_dl.mpi import buffers
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.pending import Pending
from parallel_dl.mpi.startup import MPI

_LINE = 256  # bytes


class Note:
    """A line of text in an array, `line`: number and type of the values, and of the elements that travel for them."""

    def __init__(self) -> None:
        self.line = np.zeros(_LINE, np.uint8)

    @classmethod
    def of(cls, array: Any) -> Self:
        """The note of an array."""
        array = np.asarray(array)
        dtype = buffers.native(array.dtype)
        wire = buffers.on_the_wire(np.empty(0, dtype)).dtype
        text = f"{array.size} {array.size * buffers.units(dtype)} {wire.str} {dtype}".encode()
        if len(text) > _LINE:  # equal lines stay equal, different ones different
            text = text[: _LINE - 12] + b"... %08x" % zlib.crc32(text)
        note = cls()
        note.line[: len(text)] = np.frombuffer(text, np.uint8)
        return note

    def _parts(self) -> list[str]:
        return bytes(self.line).rstrip(b"\0").decode(errors="replace").split(" ", 3)

    @property
    def values(self) -> int:
        """How many there are."""
        return int(self._parts()[0])

    @property
    def kind(self) -> str:
        """Their type by name."""
        return self._parts()[3]

    @property
    def count(self) -> int:
        """How many elements travel."""
        return int(self._parts()[1])

    @property
    def bytes(self) -> int:
        """How many bytes travel."""
        return self.count * self.travels_as.itemsize

    @property
    def travels_as(self) -> np.dtype:
        """The type of these elements."""
        return np.dtype(self._parts()[2])


class Noted(Pending):
    """A send or receive under way together with its note; `wait` raises what `check`, if any, finds in the note."""

    def __init__(
        self, message: Pending, told: Any, note: Note, check: Callable[[], Exception | None] = lambda: None
    ) -> None:
        self.__dict__.update(message.__dict__)
        self._told, self._note, self._check = told, note, check

    def _complete(self) -> Array:
        self._told.Wait()
        wrong = self._check() if self._requests else None
        if wrong is None:
            return super()._complete()
        for request in self._requests:  # the sender waits for it
            try:
                request.Wait()
            except MPI.Exception:  # longer than there is room for
                continue
        self._requests = []
        raise wrong

    def test(self) -> bool:
        return self._told.Get_status() and super().test()

"""Notes: what a message holds, sent ahead of it, so that the receiver can compare it with what it expects."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np

from parallel_dl import watchdog
from parallel_dl.mpi import buffers
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.pending import Pending
from parallel_dl.mpi.startup import MPI

LINE = 256  # bytes


def line_of(text: str) -> Array:
    """A text as an array of LINE bytes; of longer ones, equal texts stay equal and different ones different."""
    data = text.encode()
    if len(data) > LINE:
        data = data[: LINE - 12] + b"... %08x" % zlib.crc32(data)
    return np.frombuffer(data.ljust(LINE, b"\0"), np.uint8)


def text_of(line: Array) -> str:
    """The text in an array of LINE bytes."""
    return bytes(line).rstrip(b"\0").decode(errors="replace")


class Note(NamedTuple):
    """Number and type of a message's values, and of the elements that travel for them."""

    values: int
    elements: int
    travels_as: np.dtype
    kind: str
    place: str = ""
    """where the program sends it, if that is known"""

    @classmethod
    def of(cls, array: Array, place: str = "") -> Self:
        """The note of an array."""
        dtype = buffers.native(array.dtype)
        travels_as = buffers.on_the_wire(np.empty(0, dtype)).dtype
        return cls(array.size, array.size * buffers.units(dtype), travels_as, str(dtype), place)

    @classmethod
    def read(cls, line: Array) -> Self:
        """The note that was sent as this line."""
        said, _, place = text_of(line).partition("\n")
        values, elements, wire, kind = said.split(" ", 3)
        return cls(int(values), int(elements), np.dtype(wire), kind, place)

    @property
    def line(self) -> Array:
        """As it is sent."""
        return line_of(f"{self.values} {self.elements} {self.travels_as.str} {self.kind}\n{self.place}")

    @property
    def bytes(self) -> int:
        """How many bytes travel."""
        return self.elements * self.travels_as.itemsize


class Noted(Pending):
    """A send or receive under way together with its note; `wait` raises what `check`, if any, finds in the note.

    `line` is the note's array, kept until the note has been sent or received.
    """

    def __init__(
        self, message: Pending, told: Any, line: Array, check: Callable[[], Exception | None] = lambda: None
    ) -> None:
        self.__dict__.update(message.__dict__)
        message._requests = []  # they are waited for here
        self._told, self._line, self._check = told, line, check

    def _complete(self) -> Array:
        under_way = [one.started.waited for one in self._requests if getattr(one, "started", None) is not None]
        if under_way:
            watchdog.begin("wait", under_way)
        try:
            self._told.Wait()
        finally:
            watchdog.over()
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

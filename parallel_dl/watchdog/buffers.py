"""Buffers that a program uses while MPI has them: in checked mode they are noticed when it waits for the request.

The array of a send must have the same bytes then as when it was sent. What is received arrives in a hidden array; until
the wait, the program's own has a NaN in every place, which carries a mark: values that were computed from it have the
mark, too, and are found among the variables of the program. Arrays of other types than float32 and float64 are sent and
received as they are.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from parallel_dl.watchdog.record import Place, file_and_line

_MARK64, _OF_64 = 0x7FF8_5EED_0000_0000, 0x7FFF_FFFF_FFFF_0000
_MARK32, _OF_32 = 0x7FD5_E000, 0x7FFF_F000
_MOST = 1 << 20  # values of a variable that is looked at

_number = 0
_marked: dict[int, str] = {}
"""low bits of a mark -> the receive that it belongs to, in words"""


class BufferUsed(RuntimeError):
    """An array was written to, or read, while MPI still had it."""


def _words(call: str, place: Place) -> str:
    file, line = file_and_line(place)
    return f"{call} ({file.rpartition('/')[2]}:{line})"


class SentArray:
    """An array that is being sent."""

    def __init__(self, array: np.ndarray, call: str, place: Place) -> None:
        self._array, self._what = array, _words(call, place)
        self._sum = _checksum(array)

    def release(self) -> None:
        """The send is complete; BufferUsed if the array has changed meanwhile."""
        if _checksum(self._array) != self._sum:
            raise BufferUsed(f"the array of {self._what} was changed before its wait")


class ReceivedArray:
    """An array that is being received into; MPI is to be given `arriving`."""

    def __init__(self, array: np.ndarray, call: str, place: Place) -> None:
        global _number
        _number += 1
        self.arriving = array.copy()
        self._array, self._what = array, _words(call, place)
        if array.dtype.itemsize == 8:
            self._mark = _MARK64 | (_number & 0xFFFF)
        else:
            self._mark = _MARK32 | (_number & 0xFFF)
        _marked[_number & 0xFFFF] = self._what
        _bits(array)[...] = self._mark

    def release(self) -> None:
        """All is there; BufferUsed if the program has written into its array meanwhile."""
        untouched = bool((_bits(self._array) == self._mark).all())
        self._array[...] = self.arriving
        if not untouched:
            raise BufferUsed(f"the array of {self._what} was written to before its wait")


def can_be_guarded(thing: Any) -> bool:
    """Whether it is an array that marks can be put into."""
    return (
        isinstance(thing, np.ndarray)
        and thing.dtype.isnative
        and thing.dtype.kind == "f"
        and thing.dtype.itemsize in (4, 8)
        and bool(thing.flags.c_contiguous)
        and thing.size > 0
    )


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint64 if array.dtype.itemsize == 8 else np.uint32)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(array.data if array.ndim else array.tobytes())


def require_unread(variables: dict[str, Any], pending: list[ReceivedArray]) -> None:
    """BufferUsed if one of a program's variables was computed from an array that is still being received into."""
    own = [one._array for one in pending]
    for name, value in variables.items():
        if isinstance(value, float):
            found = _mark_of(np.float64(value))
        elif isinstance(value, np.floating):
            found = _mark_of(value)
        elif isinstance(value, np.ndarray) and can_be_guarded(value) and value.size <= _MOST:
            found = None if any(np.may_share_memory(value, one) for one in own) else _mark_in(value)
        else:
            continue
        if found is not None:
            raise BufferUsed(f"{name} was computed from the array of {found} before its wait")


def _mark_in(array: np.ndarray) -> str | None:
    missing = np.isnan(array)
    return _mark_of(array[missing][0]) if missing.any() else None


def _mark_of(value: Any) -> str | None:
    """The receive whose mark a NaN has."""
    if value == value:
        return None
    if value.dtype.itemsize == 4:
        bits = int(np.array(value).view(np.uint32))
        return _marked.get(bits & 0xFFF) if bits & _OF_32 == _MARK32 else None
    bits = int(np.array(value, np.float64).view(np.uint64))
    if bits & _OF_64 == _MARK64:
        return _marked.get(bits & 0xFFFF)
    single = 0x7F80_0000 | (bits >> 29 & 0x7F_FFFF)  # of a float32 that has become a float64
    return _marked.get(single & 0xFFF) if single & _OF_32 == _MARK32 else None

"""What was started and is not complete yet: a send, a receive or a sum under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parallel_dl.errors import number_of
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.rank import mine
from parallel_dl.mpi.startup import MPI


class _Abandoned:
    """What nobody has waited for: MPI may still write into its memory, or read it."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []


class Pending:
    """A send or receive in progress; keeps its array alive. If `into` is another array, data is received there."""

    _watched: Callable[[Callable[[], Array]], Array] | None = None
    """what makes the wait under the eyes of observers, if there are any"""

    def __init__(
        self,
        array: Array,
        flat: list[Array],
        requests: list[Any],
        source: int | None = None,
        into: Array | None = None,
        decode: Callable[[Array, Array], Array] = lambda array, _: array,
    ) -> None:
        self._decode = decode
        self._array = array
        self._flat = flat
        self._requests = requests
        self._source = source
        self._into = array if into is None else into

    def __del__(self) -> None:
        if getattr(self, "_requests", None) and mine is not None:  # which it is while the interpreter ends
            mine(_Abandoned).kept.append(dict(self.__dict__))

    def wait(self) -> Array:
        """Waits until the array may be used again, and returns it; ValueError if less was received than it holds."""
        if self._watched is None:
            return self._complete()
        watched, self._watched = self._watched, None
        return watched(self._complete)

    def _complete(self) -> Array:
        status = MPI.Status()
        for request, piece in zip(self._requests, self._flat):
            request.Wait(status)
            if self._source is not None:
                check_length(status, piece, self._source)
        if self._requests and self._into is not self._array:
            self._into[...] = self._decode(self._array, self._into)
        self._requests = []
        return self._into

    def test(self) -> bool:
        """Whether `wait` would return at once."""
        return all(request.Get_status() for request in self._requests)


def check_length(status: MPI.Status, piece: Array, source: int) -> None:
    """ValueError unless as much was received as there is room for."""
    received = status.Get_count(MPI.BYTE)
    if received != piece.nbytes:
        raise ValueError(f"expected {number_of(piece.nbytes, 'byte')} from rank {source}, received {received}")

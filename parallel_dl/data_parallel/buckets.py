"""Buckets: stretches of the flat gradients that are exchanged as soon as backward has completed them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from parallel_dl.data_parallel.exchange import Exchange
from parallel_dl.mpi import Communicator


class Bucket:
    """Neighbouring parameters of an exchange, whose gradients are summed together, in a copy of them.

    So later changes to the gradients do not affect the sum; `was_changed` detects them.
    """

    def __init__(self, exchange: Exchange, first: int, last: int) -> None:
        gradients = exchange.gradients
        self.parameters = exchange.parameters[first:last]
        self._views = gradients.views[first:last]
        end = gradients.slices[last].start if last < len(gradients.slices) else gradients.size
        where = slice(gradients.slices[first].start, end)
        self._local: np.ndarray = exchange.local[where]
        self._total: np.ndarray = exchange.total[where]
        self.completed = 0
        self._sent = np.empty(0, self._local.dtype)  # what was sent, until the sum is complete
        self.pending: Any = None

    @property
    def is_complete(self) -> bool:
        """Whether backward has completed every gradient in it, in place."""
        if self.completed < len(self.parameters):
            return False
        return all(parameter.grad is view for parameter, view in zip(self.parameters, self._views))

    def start(self, comm: Communicator) -> None:
        """Starts to sum the gradients over the ranks."""
        self._sent = self._local.copy()
        self._total[...] = self._sent
        self.pending = comm.start_all_reduce(self._total)

    def was_changed(self) -> bool:
        """Whether the gradients differ, in any bit, from those that were sent."""
        if self.pending is None:
            return False
        now, sent = (array.view(np.uint64) for array in (self._local, self._sent))  # whole cache lines
        return not np.array_equal(now, sent)

    def finish(self) -> None:
        """Waits for the sum, and gets ready for the next backward."""
        self.pending.wait()
        self.pending, self.completed = None, 0
        self._sent = self._sent[:0].copy()


def cut_into_buckets(exchange: Exchange, size: int) -> Iterator[Bucket]:
    """Buckets of at least `size` bytes (except the last), from the last parameter to the first, as in backward."""
    last = end = len(exchange.parameters)
    held = 0
    for first in range(end - 1, -1, -1):
        held += exchange.gradients.views[first].nbytes
        if held >= size or first == 0:
            yield Bucket(exchange, first, last)
            last, held = first, 0

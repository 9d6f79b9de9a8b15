"""Buckets: stretches of the flat gradients that are exchanged as soon as backward has completed them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from parallel_dl.mpi import Communicator
from parallel_dl.nn import FlatParameters, Parameter


class Bucket:
    """Neighbouring parameters of a flat group, whose gradients (`gradients`, a view) are exchanged together."""

    def __init__(self, group: FlatParameters, first: int, last: int) -> None:
        self.group = group
        self.parameters: list[Parameter] = group.parameters[first:last]
        end = group.slices[last].start if last < len(group.slices) else group.size
        self.gradients: np.ndarray = group.gradients[group.slices[first].start : end]
        self.completed = 0
        self.pending: Any = None

    @property
    def is_complete(self) -> bool:
        """Whether backward has completed every gradient in it, in place."""
        return self.completed == len(self.parameters) and all(p.grad is p.grad_buffer for p in self.parameters)

    def start(self, comm: Communicator) -> None:
        """Begins to sum the gradients over the ranks."""
        self.pending = comm.start_all_reduce(self.gradients)

    def finish(self) -> None:
        """Waits for the sum, and is ready for the next backward."""
        self.pending.wait()
        self.pending, self.completed = None, 0


def cut_into_buckets(group: FlatParameters, size: int) -> Iterator[Bucket]:
    """Buckets of at least `size` bytes (but the last), from the last parameter to the first: backward's order."""
    last = end = len(group.parameters)
    held = 0
    for first in range(end - 1, -1, -1):
        held += group.parameters[first].size * group.dtype.itemsize
        if held >= size or first == 0:
            yield Bucket(group, first, last)
            last, held = first, 0

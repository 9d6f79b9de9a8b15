"""The shared window under stress: NaN except during a sum, between two barriers around which ranks are late."""

from __future__ import annotations

from typing import Any

import numpy as np

from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.communicator import Communicator
from parallel_dl.mpi.stress import Stressed, keep_window, poison
from parallel_dl.mpi.transport import plain
from parallel_dl.mpi.window import SharedWindow


class StressedWindow(SharedWindow):
    """A window on a `Stressed` communicator.

    `local` is private, and in shared memory only during a sum: a rank that adds it up too early or too late adds NaN.
    Each rank's share of `total` is NaN until it is complete.
    """

    def __init__(self, comm: Communicator, size: int, dtype: Any = np.float32) -> None:
        super().__init__(comm, size, dtype)
        self._shared, self.local = self.local, self.local.copy()
        poison(self._shared)
        comm.barrier()

    @property
    def _mpi(self) -> Stressed:
        assert isinstance(self.comm.mpi, Stressed)
        return self.comm.mpi

    def all_reduce(self) -> Array:
        self._mpi.pause()
        self._shared[...] = self.local
        total = super().all_reduce()
        poison(self._shared)
        return total

    def add_up(self) -> None:
        for result, _ in self._blocks:
            poison(result)
        self._mpi.pause()
        super().add_up()

    def _give_back(self) -> None:
        plain(self._mpi).Barrier()  # only now all ranks have done with it
        for own in (self.local, *(result for result, _ in self._blocks)):
            poison(own)
        keep_window(self._mpi, super()._give_back)

"""Where the ranks of a node are, inside a call or between two, so that under stress one can wait for the others."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from parallel_dl.mpi.startup import MPI

POLL = 2e-4  # seconds
_BLOCKED = 1e-3  # seconds inside one call after which a rank is taken to wait there
_LONGEST = 0.02  # seconds that a rank sleeps for others that compute
_APART = 1e-3  # seconds that a rank sleeps whose neighbours are on other nodes


class Places:
    """Where the ranks of this node are: for each a number that is odd inside a call, and grows. Made by all ranks."""

    def __init__(self) -> None:
        world = MPI.COMM_WORLD
        node = world.Split_type(MPI.COMM_TYPE_SHARED)
        self.rank = world.rank
        self.here = frozenset(node.allgather(world.rank))
        file, path = tempfile.mkstemp(prefix="pdl-stress-") if node.rank == 0 else (-1, "")
        if node.rank == 0:
            os.ftruncate(file, 8 * world.size)
        path = node.bcast(path)
        if node.rank:
            file = os.open(path, os.O_RDWR)
        self.at = np.frombuffer(mmap.mmap(file, 8 * world.size), np.int64)
        os.close(file)
        node.Barrier()
        if node.rank == 0:
            os.unlink(path)
        node.Free()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This rank is inside a call."""
        self.at[self.rank] += 1
        try:
            yield
        finally:
            self.at[self.rank] += 1

    def wait_for(self, ranks: list[int]) -> None:
        """Sleeps until these ranks have gone on as far as they can, or `_LONGEST` is over while they compute."""
        waiting = {rank: (self.at[rank], time.monotonic()) for rank in ranks if rank in self.here}
        if len(waiting) < len(ranks):
            time.sleep(_APART)
        end = time.monotonic() + _LONGEST
        with self.inside():  # two that sleep do not wait for each other
            while waiting and time.monotonic() < end:
                time.sleep(POLL)
                for rank, (before, since) in list(waiting.items()):
                    now = self.at[rank]
                    if now % 2 and (now != before or time.monotonic() - since > _BLOCKED):
                        del waiting[rank]

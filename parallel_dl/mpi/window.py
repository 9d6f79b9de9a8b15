"""An all-reduce in shared memory: every rank of one node sums its share of all ranks' arrays, into one shared result.

What is summed has to live in the window (`local`): with a copy in and out nothing would be won. One rank's part of the
memory, page-aligned, is

    rank 0: [ total | local of rank 0 ]    rank r: [ local of rank r ]
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np

from parallel_dl import partition
from parallel_dl.mpi.buffers import Array, native
from parallel_dl.mpi.calls import collective
from parallel_dl.mpi.communicator import Communicator
from parallel_dl.mpi.startup import MPI
from parallel_dl.mpi.stress import Stressed
from parallel_dl.mpi.transport import Passed, plain

SHARED_MEMORY = "/dev/shm"
_CACHE_LINE = 64  # bytes
_BLOCK = 128 << 10  # bytes: a block of the result stays in the cache while more than two ranks' arrays are added


class NotEnoughSharedMemory(MemoryError):
    """The node's shared memory cannot hold the window; raised on every rank, nothing was allocated."""


class SharedWindow:
    """Per rank one array `local` of `size` elements of `dtype`, and `all_reduce()` into `total`, which all can read.

    The ranks of `comm` are on one node, and give one size and one dtype (ValueError on all of them otherwise). Making,
    `all_reduce` and `free` are collective. Raises NotEnoughSharedMemory, on every rank, before anything is allocated.
    Both arrays are invalid after `free`.
    """

    local: Array  # (size,): what this rank contributes; not changed by all_reduce
    total: Array  # (size,), read-only: the sum, bitwise the same on every rank; valid until the next all_reduce starts

    _is_freed = False

    def __new__(cls, comm: Communicator, *arguments: Any, **options: Any) -> SharedWindow:
        if isinstance(comm.mpi, Stressed) and cls is SharedWindow:
            from parallel_dl.mpi.stressed_window import StressedWindow

            cls = StressedWindow
        return object.__new__(cls)

    def __init__(self, comm: Communicator, size: int, dtype: Any = np.float32) -> None:
        if not comm.is_one_node:
            raise ValueError(f"a shared window needs all ranks on one node, those of {comm.name!r} are not")
        self.comm = comm
        dtype = native(dtype)
        comm.announce("SharedWindow", f"size {size}", dtype)
        _require_alike(comm, size, dtype)
        segment = _whole_pages(size * dtype.itemsize)
        require_shared_memory(comm, (comm.size + 1) * segment)
        own = segment * (2 if comm.rank == 0 else 1)
        # separate parts start on pages of their own, and on the memory of the core that writes them
        self._info = MPI.Info.Create({"alloc_shared_noncontig": "true"})
        # one page more: MPI aligns parts to what it likes, not to pages
        self._window = MPI.Win.Allocate_shared(own + mmap.PAGESIZE, 1, self._info, comm.mpi)
        parts = [_aligned(self._window.Shared_query(rank)[0]) for rank in range(comm.size)]
        starts = [segment] + [0] * (comm.size - 1)
        self._locals = [np.frombuffer(part, dtype, size, start) for part, start in zip(parts, starts)]
        self._result = np.frombuffer(parts[0], dtype, size)
        self.local = self._locals[comm.rank]
        # touched now, and by the core that will use it: memory is placed and counted when first written to
        self.local[...] = 0
        self.total = self._result[:]
        self.total.flags.writeable = False
        self._blocks = self._own_blocks(size, dtype)
        for result, _ in self._blocks:
            result[...] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        comm.barrier()

    def _own_blocks(self, size: int, dtype: np.dtype) -> list[tuple[Array, list[Array]]]:
        """(part of the result, the ranks' parts) for each block of this rank's share, which is whole cache lines."""
        line = max(1, _CACHE_LINE // dtype.itemsize)
        own = partition.share(-(-size // line), self.comm.size, self.comm.rank)
        start, stop = min(own.start * line, size), min(own.stop * line, size)
        # two ranks' arrays are added in one pass: blocks would only cost calls
        block = max(line, _BLOCK // dtype.itemsize) if self.comm.size > 2 else max(line, stop - start)
        cuts = [slice(at, min(at + block, stop)) for at in range(start, stop, block)]
        return [(self._result[cut], [part[cut] for part in self._locals]) for cut in cuts]

    def all_reduce(self) -> Array:
        """Sums all ranks' `local` in rank order; returns `total`."""
        return _all_reduce(self.comm, self)

    def meet(self) -> None:
        """What this rank has written before, the others read afterwards."""
        self._window.Sync()
        self.comm.mpi.Barrier()
        self._window.Sync()

    def add_up(self) -> None:
        """Sums this rank's share."""
        for result, parts in self._blocks:
            if len(parts) == 1:
                result[...] = parts[0]
                continue
            np.add(parts[0], parts[1], out=result)
            for part in parts[2:]:
                np.add(result, part, out=result)

    def free(self) -> None:
        """Gives the memory back (collective)."""
        if self._is_freed:
            return
        self._is_freed = True
        self.comm.announce("SharedWindow.free")
        self._give_back()
        nothing = np.empty(0, self.local.dtype)
        self.local = self.total = self._result = nothing
        self._locals, self._blocks = [], []

    def _give_back(self) -> None:
        """The memory, to MPI."""
        self._window.Unlock_all()
        self._window.Free()
        self._info.Free()


@collective(name="SharedWindow.all_reduce")
def _all_reduce(comm: Communicator, window: SharedWindow) -> Array:
    window.meet()
    window.add_up()
    window.meet()
    comm.tell(Passed("window", 0, 0, 0, window.local.nbytes))
    return window.total


def _require_alike(comm: Communicator, size: int, dtype: np.dtype) -> None:
    """Raises ValueError on every rank unless all have the same: they read each other's memory."""
    given = plain(comm.mpi).allgather((size, str(dtype)))
    if dtype.hasobject or size < 0:
        raise ValueError(f"a shared window of {size} {dtype}: needs a length of at least 0 and plain numbers")
    for rank, of_rank in enumerate(given):
        if of_rank != given[0]:
            raise ValueError(
                f"a shared window must be the same on all ranks, but rank 0 wants {given[0][0]} {given[0][1]} and rank "
                f"{rank} {of_rank[0]} {of_rank[1]}"
            )


def require_shared_memory(comm: Communicator, needed: int) -> None:
    """Raises NotEnoughSharedMemory on every rank if `needed` bytes for all ranks together are not there.

    Memory is reserved when it is first written to: MPI would allocate more than there is, and a rank would end with
    SIGBUS later.
    """
    available = int(comm.mpi.allreduce(_available(), MPI.MIN))
    needed += (comm.size + 2) * mmap.PAGESIZE  # alignment, and MPI's own bookkeeping
    if needed > available:
        raise NotEnoughSharedMemory(
            f"{SHARED_MEMORY} has {available / 2**20:.1f} MiB free, a shared window needs {needed / 2**20:.1f} MiB"
        )
    comm.mpi.Barrier()  # nobody allocates while another still looks


def _available() -> int:
    try:
        state = os.statvfs(SHARED_MEMORY)
    except OSError:  # another system keeps shared memory elsewhere, and limits it by the memory itself
        return 2**62
    return state.f_bavail * state.f_frsize


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _aligned(memory: Any) -> Any:
    """The part of a buffer that begins on a page."""
    buffer = memoryview(memory).cast("B")
    address = np.frombuffer(buffer, np.uint8).ctypes.data
    return buffer[-address % mmap.PAGESIZE :]

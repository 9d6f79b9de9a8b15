"""The shared-memory window: sums, their bits, alignment, and refusing what does not fit."""

import mmap
import os

import numpy as np
import pytest

from parallel_dl.mpi import CollectiveMismatch, Communicator, NotEnoughSharedMemory, SharedWindow, window

pytestmark = pytest.mark.ranks(1, 2, 3, 4)


@pytest.mark.parametrize("size", [0, 1, 15, 17, 4096, 100_003])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "complex64"])
def test_sums(comm, size, dtype):
    shared = SharedWindow(comm, size, dtype)
    assert shared.local.shape == shared.total.shape == (size,)
    assert not shared.local.any()
    for turn in range(3):
        values = [np.random.default_rng([turn, r]).integers(-9, 9, size).astype(dtype) for r in range(comm.size)]
        shared.local[:] = values[comm.rank]
        total = shared.all_reduce()
        assert total is shared.total
        np.testing.assert_array_equal(total, sum(values))
        np.testing.assert_array_equal(shared.local, values[comm.rank])
        comm.barrier()
    shared.free()
    shared.free()


def test_the_order_is_that_of_the_ranks_and_the_bits_are_the_same_everywhere(comm):
    size = 70_001
    shared = SharedWindow(comm, size)
    values = [
        np.random.default_rng(r).standard_normal(size).astype(np.float32) * 10 ** (r + 1) for r in range(comm.size)
    ]
    shared.local[:] = values[comm.rank]
    expected = values[0]
    for value in values[1:]:
        expected = expected + value
    np.testing.assert_array_equal(shared.all_reduce(), expected)
    assert len(set(comm.all_gather_object(shared.total.tobytes()))) == 1
    shared.free()


def test_several_windows_page_aligned_and_the_result_read_only(comm):
    windows = [SharedWindow(comm, size, dtype) for size, dtype in ((3, "f4"), (5000, "f8"), (1, "i8"))]
    for number, shared in enumerate(windows):
        shared.local[:] = number + 1
    for number, shared in enumerate(windows):
        assert (shared.all_reduce() == (number + 1) * comm.size).all()
        assert shared.local.ctypes.data % mmap.PAGESIZE == 0
        assert shared.total.ctypes.data % mmap.PAGESIZE == 0
        with pytest.raises(ValueError, match="read-only"):
            shared.total[0] = 1
    for shared in windows:
        shared.free()


def test_too_little_memory_on_one_rank_is_too_little_for_all(comm, monkeypatch):
    before = set(os.listdir(window.SHARED_MEMORY)) if os.path.isdir(window.SHARED_MEMORY) else set()
    if comm.rank == comm.size - 1:
        monkeypatch.setattr(window, "_available", lambda: 1000)
    with pytest.raises(NotEnoughSharedMemory, match="a shared window needs"):
        SharedWindow(comm, 100_000)
    if before:
        added = set(os.listdir(window.SHARED_MEMORY)) - before
        assert not [name for name in added if "osc" in name]


def test_more_than_the_machine_has(comm):
    with pytest.raises(NotEnoughSharedMemory):
        SharedWindow(comm, 2**45)


@pytest.mark.ranks(2, 3, 4)
def test_ranks_that_do_something_else(comm):
    shared = SharedWindow(comm, 10)
    with pytest.raises(CollectiveMismatch, match=r"SharedWindow\.all_reduce"):
        comm.barrier() if comm.rank == 0 else shared.all_reduce()
    with pytest.raises(CollectiveMismatch, match="SharedWindow #"):
        SharedWindow(comm, 10 if comm.rank == 0 else 11)
    shared.free()


def test_foreign_byte_order_and_windows_that_differ(comm):
    shared = SharedWindow(comm, 5, ">f4")
    shared.local[:] = np.arange(5)
    assert shared.all_reduce().tolist() == [comm.size * k for k in range(5)]
    shared.free()
    bare = Communicator(comm.mpi, checked=False)
    if comm.size > 1:
        for size, dtype in ((10 + comm.rank, "f4"), (10, "f8" if comm.rank else "f4")):
            with pytest.raises(ValueError, match=r"but rank 0 wants 10 float32 and rank 1 1[01] float"):
                SharedWindow(bare, size, dtype)
    with pytest.raises(ValueError, match="needs a length of at least 0 and plain numbers"):
        SharedWindow(bare, 3, object)
    bare.barrier()

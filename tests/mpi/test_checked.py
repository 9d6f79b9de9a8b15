"""Checked mode: whatever ranks call differently is reported on all of them, and the communicator lives on."""

import os

import numpy as np
import pytest

from parallel_dl.mpi import CheckedCommunicator, CollectiveMismatch, Communicator, checked

pytestmark = pytest.mark.ranks(2, 3, 4)

ONES = np.ones(4, np.float32)
CALLS = {
    "all_reduce": lambda c: c.all_reduce(ONES),
    "all_reduce of another op": lambda c: c.all_reduce(ONES, "max"),
    "all_reduce of another shape": lambda c: c.all_reduce(np.ones(5, np.float32)),
    "all_reduce of another dtype": lambda c: c.all_reduce(np.ones(4)),
    "start_all_reduce": lambda c: c.start_all_reduce(ONES.copy()).wait(),
    "reduce": lambda c: c.reduce(ONES),
    "reduce to another root": lambda c: c.reduce(ONES, 1),
    "reduce_scatter": lambda c: c.reduce_scatter(ONES),
    "reduce_scatter by sizes": lambda c: c.reduce_scatter(ONES, 0, [4] + [0] * (c.size - 1)),
    "all_gather": lambda c: c.all_gather(ONES),
    "all_gather along another axis": lambda c: c.all_gather(np.ones((4, 4), np.float32), 1),
    "gather": lambda c: c.gather(ONES),
    "scatter": lambda c: c.scatter(ONES),
    "all_to_all": lambda c: c.all_to_all(np.ones((4, 4)), 0, 1),
    "all_to_all along other axes": lambda c: c.all_to_all(np.ones((4, 4)), 1, 0),
    "broadcast": lambda c: c.broadcast(ONES),
    "broadcast from another root": lambda c: c.broadcast(ONES, 1),
    "shift": lambda c: c.shift(ONES, 1),
    "shift the other way": lambda c: c.shift(ONES, -1),
    "exchange_slices": lambda c: c.exchange_slices(ONES, 0, *[[slice(4 * r, 4 * r + 4) for r in range(c.size)]] * 2),
    "return_slices": lambda c: c.return_slices(ONES, 0, *[[slice(4 * r, 4 * r + 4) for r in range(c.size)]] * 2),
    "barrier": lambda c: c.barrier(),
    "all_gather_object": lambda c: c.all_gather_object("x"),
    "broadcast_object": lambda c: c.broadcast_object("x"),
    "shard_sizes": lambda c: c.shard_sizes(3),
    "duplicate": lambda c: c.duplicate().free(),
    "split": lambda c: c.split(0).free(),
    "announce": lambda c: c.announce("something else"),
}


def test_every_pair_of_different_calls_is_reported_on_every_rank(comm):
    names = list(CALLS)
    odd_rank = comm.size - 1
    for usual in names[:3]:
        for odd in names:
            mine = odd if comm.rank == odd_rank else usual
            if odd == usual:
                CALLS[mine](comm)
                continue
            with pytest.raises(CollectiveMismatch) as caught:
                CALLS[mine](comm)
            assert " but " in str(caught.value), (usual, odd)
    for name in names:  # all the same: nothing is reported, and everything works after the errors
        CALLS[name](comm)


def test_the_message_names_both_sides(comm):
    with pytest.raises(CollectiveMismatch) as caught:
        comm.broadcast(ONES) if comm.rank == 1 else comm.all_reduce(ONES)
    first = "rank 0 calls" if comm.size == 2 else "ranks 0 and 2 call" if comm.size == 3 else "ranks 0, 2 and 3 call"
    assert f"{first} all_reduce #1 (sum, float32, shape (4,)) but rank 1 calls broadcast #1 (root 0)" in str(
        caught.value
    )


def test_lengths_along_the_concatenated_axis_may_differ(comm):
    assert comm.all_gather(np.ones((comm.rank, 2))).shape == (sum(range(comm.size)), 2)
    with pytest.raises(CollectiveMismatch, match=r"shape \(any, 3\)"):
        comm.all_gather(np.ones((2, 3 if comm.rank == 0 else 2)))


def test_fingerprints_longer_than_a_line(comm):
    comm.announce("long", "x" * 1000)
    with pytest.raises(CollectiveMismatch):
        comm.announce("long", "x" * 1000 + str(comm.rank))


def test_who_is_checked(comm, monkeypatch):
    assert isinstance(comm, CheckedCommunicator)
    monkeypatch.delenv("PARALLEL_DL_CHECKED", raising=False)
    assert type(Communicator(comm.mpi)) is Communicator
    monkeypatch.setitem(os.environ, "PARALLEL_DL_CHECKED", "1")
    other = Communicator(comm.mpi.Dup())
    assert type(other) is CheckedCommunicator
    part = other.split(0)
    assert type(part) is CheckedCommunicator
    part.free()
    other.free()
    assert type(Communicator(comm.mpi, checked=False)) is Communicator


def test_a_rank_that_waits_long_says_where(comm, monkeypatch, capfd):
    """Rank 1 comes when all others have said where they wait."""
    meeting = comm.mpi.Dup()

    def tell(*line, **how):
        print(*line, **how)
        meeting.Barrier()

    if comm.rank == 1:
        meeting.Barrier()
    else:
        monkeypatch.setattr(checked, "PATIENCE", 0.05)
        monkeypatch.setattr(checked, "print", tell, raising=False)
    comm.all_gather(ONES)
    meeting.Free()
    said = capfd.readouterr().err
    waits = (
        f"rank {comm.rank} calls all_gather #1 (axis 0, float32, shape (any,)) on communicator {comm.name!r} and has"
    )
    assert (waits in said) == (comm.rank != 1)

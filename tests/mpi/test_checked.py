"""Checked mode: whatever ranks call differently is reported on all of them, and the communicator lives on."""

import gc
import os
import re

import numpy as np
import pytest

from parallel_dl.mpi import MPI, CollectiveMismatch, Communicator, MessageMismatch
from parallel_dl.mpi.observers import checked
from parallel_dl.mpi.pending import _Abandoned
from parallel_dl.mpi.rank import mine

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
    most, odd = "all_reduce #1 (sum, float32, shape (4,))", "broadcast #1 (root 0)"
    said, *rows = str(caught.value).splitlines()
    if comm.size == 2:
        assert said.endswith(f"rank 0 calls {most} but rank 1 calls {odd}")
    else:
        others = "ranks 0 and 2 call" if comm.size == 3 else "ranks 0, 2 and 3 call"
        assert said.endswith(f"rank 1 calls {odd} but {others} {most}")
        assert rows[0].startswith(f"> rank 1  {odd} ")
    assert len(rows) == comm.size
    assert all(re.search(r"test_checked.py:\d+ in test_the_message_names_both_sides$", row) for row in rows)


def test_lengths_along_the_concatenated_axis_may_differ(comm):
    assert comm.all_gather(np.ones((comm.rank, 2))).shape == (sum(range(comm.size)), 2)
    with pytest.raises(CollectiveMismatch, match=r"shape \(any, 3\)"):
        comm.all_gather(np.ones((2, 3 if comm.rank == 0 else 2)))


def test_fingerprints_longer_than_a_line(comm):
    comm.announce("long", "x" * 1000)
    with pytest.raises(CollectiveMismatch):
        comm.announce("long", "x" * 1000 + str(comm.rank))


def test_who_is_checked(comm, monkeypatch):
    assert comm.checked
    monkeypatch.delenv("PARALLEL_DL_CHECKED", raising=False)
    assert not Communicator(comm.mpi).checked
    monkeypatch.setitem(os.environ, "PARALLEL_DL_CHECKED", "1")
    other = Communicator(comm.mpi.Dup())
    assert other.checked
    part = other.split(0)
    assert part.checked
    part.free()
    other.free()
    assert not Communicator(comm.mpi, checked=False).checked


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


# -- what one rank alone sees --------------------------------------------------------------------------------------
ALONE = {
    "out of another type": lambda c, odd: c.all_reduce(ONES, out=np.empty(4, np.float64 if odd else np.float32)),
    "out of another shape": lambda c, odd: c.all_reduce(ONES, out=np.empty(5 if odd else 4, np.float32)),
    "an array that is no whole one": lambda c, odd: c.start_all_reduce(np.ones((4, 2))[:, 0] if odd else np.ones(4)),
    "another length than sizes": lambda c, odd: c.all_gather(np.ones(3 if odd else 4), 0, [4] * c.size),
    "another length in gather": lambda c, odd: c.gather(np.ones(3 if odd else 4), 0, 0, [4] * c.size),
    "another length in all_to_all": lambda c, odd: c.all_to_all(
        np.ones((3 if odd else 4, 4)), 1, 0, None, [4] * c.size
    ),
    "too few sizes": lambda c, odd: c.all_gather(ONES, 0, [4] * (c.size - odd)),
    "an axis that is none": lambda c, odd: c.all_gather(ONES, int(odd)),
    "objects": lambda c, odd: c.all_gather(np.array([None] * 4) if odd else ONES),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_wrong_argument_on_one_rank_is_refused_on_all(comm, name):
    with pytest.raises(CollectiveMismatch):
        ALONE[name](comm, comm.rank == comm.size - 1)
    comm.barrier()


def test_byte_order_is_no_difference(comm):
    x = np.arange(4, dtype=">f4" if comm.rank == 0 else "f4")
    assert comm.all_reduce(x).tolist() == [0, comm.size, 2 * comm.size, 3 * comm.size]
    assert comm.broadcast(x, 0, (4,), x.dtype).tolist() == [0, 1, 2, 3]
    assert comm.shift(x, 1).tolist() == [0, 1, 2, 3]


# -- messages from one rank to another -----------------------------------------------------------------------------
DOUBLES = np.arange(4.0)
RECEIVED = {
    "bytes agree": (DOUBLES, (8,), np.float32),
    "type of the same size": (DOUBLES, (4,), np.int64),
    "another byte order and type": (DOUBLES, (4,), ">i8"),
    "more": (DOUBLES, (5,), np.float64),
    "less": (DOUBLES, (3,), np.float64),
    "nothing": (DOUBLES, (0,), np.float64),
    "something of nothing": (DOUBLES[:0], (1,), np.float64),
    "half as bytes": (np.ones(4, np.float16), (4,), np.uint16),
    "booleans as bytes": (np.ones(4, bool), (4,), np.uint8),
    "records": (np.zeros(2, [("a", "i4"), ("b", "f4")]), (2,), np.int64),
    "large": (np.zeros(100_000), (200_000,), np.float32),
}


@pytest.mark.parametrize("name", RECEIVED)
def test_a_receive_of_something_else_is_refused(comm, name):
    sent, shape, dtype = RECEIVED[name]
    said = (
        rf"expected [\d,]+ bytes? from rank 0, .* but it sends {sent.nbytes:,} bytes, {sent.size:,} .* \(to rank 1 on"
    )
    for start in (False, True):
        if comm.rank == 0:
            comm.isend(sent, 1, 7).wait() if start else comm.send(sent, 1, 7)
        elif comm.rank == 1:
            with pytest.raises(MessageMismatch, match=said):
                comm.ireceive(np.empty(shape, dtype), 0, 7).wait() if start else comm.receive(0, shape, dtype, 7)
    comm.barrier()
    if comm.rank == 0:  # what was refused is gone: the next message is the next
        comm.send(DOUBLES, 1, 7)
    elif comm.rank == 1:
        assert comm.receive(0, (2, 2), np.float64, 7).tolist() == [[0, 1], [2, 3]]


def test_messages_of_other_ranks_and_tags_are_told_apart(comm):
    last = comm.size - 1
    if comm.rank == 0:
        sends = [comm.isend(np.full(2, tag, dtype), last, tag) for tag, dtype in ((1, "f4"), (2, "f8"), (3, "i8"))]
        for pending in sends:
            pending.wait()
            assert pending.test()
    if comm.rank == last:
        assert comm.receive(0, (2,), "i8", 3).tolist() == [3, 3]
        first = comm.ireceive(np.empty(2, "f4"), 0, 1)
        assert comm.receive(MPI.ANY_SOURCE, (2,), "f8", 2).tolist() == [2, 2]
        assert first.wait().tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"expected .* but it sends"):
        comm.shift(DOUBLES, 1, shape=(3,))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.ranks(2)
def test_what_nobody_waits_for_keeps_its_memory(comm, checked):
    """MPI writes what arrives into the array and, in checked mode, its note into another one: both have to be there."""
    ranks = comm if checked else Communicator(comm.mpi, checked=False)
    kept = mine(_Abandoned).kept
    before = len(kept)
    if comm.rank == 0:
        ranks.ireceive(np.empty(5), 1)
        gc.collect()  # an observed call and its result hold each other
        assert len(kept) == before + 1
        assert kept[-1]["_array"].shape == (5,)
        assert ("_line" in kept[-1]) == checked
    ranks.barrier()
    if comm.rank == 1:
        ranks.send(np.ones(5), 0)
    ranks.barrier()
    if comm.rank == 0:
        assert kept[-1]["_array"].tolist() == [1.0] * 5

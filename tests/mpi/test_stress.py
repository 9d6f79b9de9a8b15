"""Stress mode: right programs are right under it, and what is used before it is complete is seen, every time."""

import os

import numpy as np
import pytest

from parallel_dl.errors import InputError
from parallel_dl.mpi import MPI, Communicator, Ledger, SharedWindow, one_rank, stress

DTYPES = ["float16", "float32", "float64", "complex128", "int8", "uint16", "int64", "bool", "S3"]


@pytest.fixture
def stressed(comm):
    with stress.stressed(comm, 7) as late:
        yield late
        stress.races(late)


def moved(comm):
    """What every kind of call gives."""
    size, rank = comm.size, comm.rank
    rows = [slice(3 * r, 3 * r + 3) for r in range(size)]
    wider = [slice(max(0, part.start - 1), min(3 * size, part.stop + 1)) for part in rows]
    ours = np.arange(12.0).reshape(3, 4) + 100 * rank
    later = ours.copy()
    pending = comm.start_all_reduce(later)
    window = SharedWindow(comm, 7)
    window.local[:] = rank
    found = [
        comm.all_reduce(ours),
        comm.all_reduce(ours > 105, "or"),
        comm.reduce(ours),
        comm.reduce_scatter(np.tile(ours, (1, size))),
        comm.all_gather(ours.T, 1),
        comm.gather(ours.astype(">i4")),
        comm.scatter(np.arange(size * 2.0) if rank == 0 else None),
        comm.all_to_all(np.tile(ours, (size, 1)), 0, 1),
        comm.broadcast(ours, 1),
        comm.shift(ours, 1),
        comm.exchange_slices(ours, 0, rows, wider),
        comm.return_slices(comm.exchange_slices(ours, 0, rows, wider), 0, rows, wider),
        comm.in_tree().all_reduce(ours) if size == 2 else 0,
        np.array(comm.all_gather_object({"rank": rank})),
        comm.broadcast_object("x", 1),
        pending.wait(),
        window.all_reduce().copy(),
        window.all_reduce().copy(),
    ]
    if rank == 0:
        comm.send(ours, 1)
        comm.isend(ours.T, 1, 3).wait()
    elif rank == 1:
        found += [comm.receive(0, (3, 4), np.float64), comm.ireceive(np.empty((4, 3), ">f8"), 0, 3).wait()]
    window.free()
    comm.barrier()
    return found


@pytest.mark.ranks(2, 3)
def test_every_call_gives_the_same(comm, stressed):
    assert stress.collects()
    for plain, late in zip(moved(comm), moved(stressed), strict=True):
        np.testing.assert_array_equal(plain, late)
    part = stressed.split(0).duplicate()
    assert isinstance(part.mpi, stress.Stressed)
    moved(part)
    part.free()
    assert stress.races(stressed) == []


@pytest.mark.ranks(2)
def test_the_ledger_counts_the_same(comm):
    rows = []
    for late in (False, True):
        ledger = Ledger()
        counted = Communicator(comm.mpi, checked=False, ledger=ledger)
        if late:
            with ledger.counting(), stress.stressed(counted, 1) as counted:
                moved(counted.labelled("here"))
                assert isinstance(counted.labelled("there").mpi, stress.Stressed)
        else:
            with ledger.counting():
                moved(counted.labelled("here"))
        rows.append(ledger.rows())
    assert rows[0] == rows[1] != []


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_receive_is_poisoned_until_its_wait(stressed, dtype):
    """Also when the message has long arrived."""
    sent = np.arange(1, 9).astype(dtype)
    if stressed.rank == 0:
        stressed.isend(sent, 1).wait()
    stressed.barrier()
    if stressed.rank == 1:
        buffer = sent.copy()
        pending = stressed.ireceive(buffer, 0)
        assert not (buffer == sent).all()
        if buffer.dtype.kind in "fc":
            assert np.isnan(buffer).all()
        np.testing.assert_array_equal(pending.wait(), sent)
        np.testing.assert_array_equal(buffer, sent)
    assert stress.races(stressed) == []


@pytest.mark.ranks(2)
def test_a_sum_is_poisoned_until_its_wait(stressed):
    for dtype in (np.float32, np.int64):
        array = np.ones(5, dtype)
        pending = stressed.start_all_reduce(array)
        assert not (array == 2).any()
        assert not (array == 1).any()
        assert (pending.wait() == 2).all()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("when", ["before wait", "before another call", "never"])
def test_a_send_buffer_that_is_written_to(stressed, when):
    if stressed.rank == 0:
        buffer = np.ones(6)
        pending = stressed.isend(buffer, 1, 5)
        buffer[3] = 0 if when != "never" else 1
        if when == "before another call":
            stressed.send(np.ones(1), 1)
            buffer[3] = 1  # as if nothing had been
        if when != "never":
            pending.wait()
    else:
        stressed.receive(0, (6,), np.float64, 5)
        if when == "before another call":
            stressed.receive(0, (1,), np.float64)
    (race,) = stress.races(stressed)[:1]
    what = "was never waited for" if when == "never" else "was written to before its wait"
    assert race.startswith("rank 0: ")
    assert f"a send to rank 1 on {stressed.name!r}, tag 5, {what}" in race


@pytest.mark.ranks(2)
def test_a_receive_buffer_that_is_used_twice(stressed):
    if stressed.rank == 0:
        stressed.send(np.ones(3), 1, 1)
        stressed.send(np.full(3, 2.0), 1, 2)
    else:
        buffer = np.empty(3)
        first, second = stressed.ireceive(buffer, 0, 1), stressed.ireceive(buffer, 0, 2)
        first.wait()
        second.wait()
    (race,) = stress.races(stressed)
    assert race.startswith("rank 1: the buffer of a receive from rank 0")


@pytest.mark.ranks(2)
def test_a_window_is_a_number_only_in_its_sum(stressed):
    window = SharedWindow(stressed, 40)
    assert not window.local.any()
    for _ in range(2):
        window.local[:] = 1
        assert (window.all_reduce() == 2).all()
        assert np.isnan(window._shared).all()
        stressed.barrier()
    local, total = window.local, window.total
    assert not np.isnan(local).any()
    window.free()
    window.free()
    stressed.barrier()
    assert np.isnan(local).all()
    assert np.isnan(total).all()
    SharedWindow(stressed, 3).free()


@pytest.mark.ranks(2)
def test_without_stress_there_is_nothing_of_it(comm):
    with stress.stressed(comm, 0) as late:
        assert isinstance(late.mpi, stress.Stressed)
    assert not stress.collects()
    assert type(comm.mpi) is not stress.Stressed
    for fresh in (Communicator(comm.mpi, checked=False), comm.duplicate()):
        assert type(fresh.mpi) is MPI.Intracomm
    assert late.mpi is comm.mpi  # and is freed with it
    moved(late)
    assert type(SharedWindow(comm, 3)) is SharedWindow


@pytest.mark.ranks(2)
def test_a_serial_run_under_it_is_not_delayed(comm, stressed, monkeypatch):
    part = stressed.duplicate()
    moved(part)
    with monkeypatch.context() as patched, one_rank():
        patched.setattr(stress.Places, "wait_for", lambda *_: pytest.fail("there is nobody to wait for"))
        for _ in range(50):
            part.barrier()
            assert part.all_reduce(np.ones(2)).sum() == 2
    moved(part)
    part.free()


def test_seeds():
    assert stress.seed_of("0", "") == 0
    for wrong in ("", "-1", "1.5", "x", "²", str(2**63)):
        with pytest.raises(InputError, match=r"PARALLEL_DL_STRESS=.*whole number in 0\.\.2"):
            stress.seed_of(wrong, "PARALLEL_DL_STRESS=")


@pytest.mark.skipif("PARALLEL_DL_JOB" in os.environ, reason="starts programs of its own")
@pytest.mark.parametrize(("seed", "status"), [("", 0), ("5", 1), ("five", 1)])
def test_any_program(run, environment, seed, status):
    """A program with a race that makes no difference here; under stress it ends, and the rank is named."""
    environment.setenv("PARALLEL_DL_STRESS", seed)
    ended = run(
        """
        import numpy as np
        from parallel_dl.mpi import world
        comm, buffer = world(), np.ones(3)
        comm.all_reduce(buffer)
        if comm.rank == 0:
            sending = comm.isend(buffer, 1)
            buffer[:] = 2
            sending.wait()
        else:
            comm.receive(0, (3,), np.float64)
        """
    )
    assert ended.status == status, ended.err
    said = {"": "", "5": "stress.RaceFound: the buffer of a send to rank 1 on 'world', tag 0, was written to"}
    assert said.get(seed, "PARALLEL_DL_STRESS=five: must be a whole number") in ended.err


@pytest.mark.skipif("PARALLEL_DL_JOB" in os.environ, reason="starts programs of its own")
def test_what_a_program_leaves_behind_is_said(run, environment):
    environment.setenv("PARALLEL_DL_STRESS", "1")
    ended = run(
        """
        import numpy as np
        from parallel_dl.mpi import SharedWindow, world
        comm = world()
        SharedWindow(comm, 3).free()
        if comm.rank == 0:
            comm.isend(np.ones(2), 1)
        else:
            comm.receive(0, (2,), np.float64)
        """
    )
    assert ended.status == 0, ended.err
    assert "parallel-dl: rank 0: a send to rank 1 on 'world', tag 0, was never waited for" in ended.err.splitlines()

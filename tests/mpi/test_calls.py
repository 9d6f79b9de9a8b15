"""Calls: declared once, a collective is checked, counted, timed and recorded; wrong arguments are named."""

import itertools
import re
from typing import Any

import numpy as np
import pytest

from parallel_dl.launch.tracebacks import is_ours
from parallel_dl.mpi import (
    CollectiveMismatch,
    Communicator,
    FlightRecorder,
    Ledger,
    Mesh,
    Observer,
    SharedWindow,
    Timeline,
    collective,
    collectives,
)
from parallel_dl.mpi.facts import type_only


@collective
def sum_below(comm: Communicator, array: np.ndarray, op: str = "sum", stride: int = 1) -> np.ndarray:
    """The sum of the arrays of all ranks below this one: a collective of a user's own."""
    total = np.zeros_like(array)
    if comm.rank > 0:
        total += comm.receive(comm.rank - 1, array.shape, array.dtype)
    if comm.rank < comm.size - 1:
        comm.isend(total + array, comm.rank + 1).wait()
    return total


@pytest.fixture
def watched(comm):
    """A communicator with every observer, and these."""
    recorder, timeline = FlightRecorder(), Timeline(clock=itertools.count().__next__)
    ranks = Communicator(comm.mpi, checked=True, name="watched", ledger=Ledger(), observers=[recorder, timeline])
    return ranks, recorder, timeline


# -- a new collective ------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2, 3)
def test_a_new_collective_declared_once_is_checked_counted_timed_and_recorded(comm, watched):
    ranks, recorder, timeline = watched
    plain = Communicator(comm.mpi, checked=False)
    ones = np.ones(4, np.float32)
    with ranks.ledger.counting():
        for found in (sum_below(plain, ones), sum_below(ranks, ones, stride=1)):
            assert found.tolist() == [ranks.rank] * 4
    sends = ranks.rank < ranks.size - 1
    assert [(row.call, row.messages, row.values, row.bytes) for row in ranks.ledger.rows()] == [
        ("isend", 1, 4, 16)
    ] * sends
    whole = next(span for span in timeline.spans if span.call == "sum_below")
    assert (whole.communicator, whole.bytes, whole.depth) == ("watched", 16 * sends, 0)
    assert all(whole.start < span.start < span.end < whole.end for span in timeline.spans if span is not whole)
    assert str(recorder.calls[0]) == "#1 sum_below (sum, stride 1, float32, shape (4,)) on 'watched': finished"
    usual, odd = (rf"calls? sum_below #2 \(sum, stride {stride}, float32, shape \(4,\)\)" for stride in (1, 2))
    said = f"{usual} but rank . {odd}" if ranks.size == 2 else f"rank . {odd} but .* {usual}"
    with pytest.raises(CollectiveMismatch, match=said):
        sum_below(ranks, ones, "sum", 2 if ranks.rank == ranks.size - 1 else 1)
    assert recorder.calls[-1].state == "failed"


def test_what_a_call_cannot_have():
    with pytest.raises(TypeError, match="anything: the parameters of a call have a name each"):

        @collective
        def anything(comm, *arguments):
            """Nothing."""


def a_collective(comm, array: np.ndarray, op: str, rest=None):
    """Of which `rest` has no annotation."""


DECLARED = {
    "own": (
        {"own": ("rest", "arry")},
        "a_collective: is declared with 'arry', which is not an argument; expected one of array, op, rest",
    ),
    "a fact": (
        {"own": ("rest",), "opp": type_only},
        "a_collective: is declared with 'opp', which is not an argument; expected",
    ),
    "the communicator": ({"own": ("comm",)}, "a_collective: is declared with 'comm', which is not an argument"),
    "no fact": (
        {"rest": "type"},
        "a_collective: rest='type' is not a fact; expected a function like those of mpi.facts",
    ),
    "no annotation": (
        {"op": type_only},
        "a_collective: argument rest has no annotation, by which the ranks compare it;",
    ),
    "one word": ({"own": "rest"}, "collective: own is 'rest'; expected a tuple of names, ('rest',)"),
}


@pytest.mark.parametrize(("declared", "said"), DECLARED.values(), ids=DECLARED)
def test_what_is_declared_of_a_call_fits_its_arguments(declared, said):
    with pytest.raises(TypeError, match=re.escape(said)) as refused:
        collective(**declared)(a_collective)
    assert "\n" not in str(refused.value)


@pytest.mark.ranks(2)
def test_a_number_is_compared_and_what_is_own_or_any_is_not(comm):
    @collective(own=("rest",))
    def scaled(comm: Communicator, by: float, rest, loose: Any) -> None:
        """Nothing."""

    ranks = Communicator(comm.mpi, checked=True)
    scaled(ranks, 0.5, ranks.rank, ranks.rank)
    with pytest.raises(CollectiveMismatch, match=r"calls? scaled #2 \(by 0.5\) but rank 1 calls scaled #2 \(by 1.5\)"):
        scaled(ranks, 0.5 + ranks.rank, 0, 0)
    with pytest.raises(TypeError, match="by must be a number, not 'x'"):
        scaled(ranks, "x", 0, 0)


def test_to_a_traceback_a_call_is_no_file_of_the_users():
    """A mismatch is shown at the line that called."""
    for call in (Communicator.all_reduce, Communicator.send, sum_below):
        assert is_ours(call.__code__.co_filename)


# -- observers -------------------------------------------------------------------------------------------------------
WATCHING = {
    "a word": ({"observers": ["x"]}, "Communicator: observer 'x' is no parallel_dl.mpi.Observer"),
    "a class": ({"observers": [Timeline]}, "is no parallel_dl.mpi.Observer; did you mean Timeline()?"),
    "one": ({"observers": Timeline()}, "; expected a list of observers"),
    "no ledger": ({"ledger": True}, "Communicator: ledger is True; expected a Ledger() of parallel_dl.mpi"),
}


@pytest.mark.parametrize(("given", "said"), WATCHING.values(), ids=WATCHING)
@pytest.mark.ranks(1, 2)
def test_what_cannot_watch_is_refused_at_once(comm, given, said):
    with pytest.raises(TypeError, match=re.escape(said)) as refused:
        Communicator(comm.mpi, **given)
    assert "\n" not in str(refused.value)


@pytest.mark.ranks(2)
def test_the_recorder_tells_where_a_rank_is(watched):
    ranks, recorder, _ = watched

    class Look(Observer):
        def begin(self, call):
            self.seen = recorder.text()

    look = Look()
    with_look = Communicator(ranks, name="both", observers=[recorder, look], checked=False)
    with_look.all_reduce(np.ones(3))
    assert look.seen == "#1 all_reduce (sum, float64, shape (3,)) on 'both': started"
    assert recorder.text() == "#1 all_reduce (sum, float64, shape (3,)) on 'both': finished"
    with pytest.raises(ValueError, match="op 'product'"):
        with_look.all_reduce(np.ones(3), "product")
    assert recorder.calls[-1].state == "failed"


@pytest.mark.ranks(2)
def test_the_recorder_keeps_the_last_calls(comm):
    recorder = FlightRecorder(length=3)
    ranks = Communicator(comm.mpi, checked=False, name="ring", observers=[recorder])
    for root in (0, 1, 0, 1):
        ranks.broadcast_object(None, root)
    assert [(call.number, call.facts) for call in recorder.calls] == [(2, ["root 1"]), (3, ["root 0"]), (4, ["root 1"])]


@pytest.mark.ranks(2)
def test_what_was_started_is_seen_again_when_it_is_waited_for(watched):
    """By everybody who sees calls, once."""
    ranks, recorder, timeline = watched
    other = 1 - ranks.rank
    arriving = ranks.ireceive(np.empty(2), other, 5)
    leaving = ranks.isend(np.full(2, float(ranks.rank)), other, 5)
    for _ in range(2):
        assert arriving.wait().tolist() == [other] * 2
        leaving.wait()
    assert [call.call for call in recorder.calls] == ["ireceive", "isend", "wait of ireceive", "wait of isend"]
    assert recorder.calls[2].facts == [f"source {other}", "tag 5", "float64", "shape (2,)"]
    assert [(span.call, span.bytes) for span in timeline.spans] == [
        *(("ireceive", 0), ("isend", 16)),
        *(("wait of ireceive", 0), ("wait of isend", 0)),
    ]


@pytest.mark.ranks(2)
def test_windows_and_movements_are_seen_too(watched):
    ranks, recorder, timeline = watched
    window = SharedWindow(ranks, 3)
    window.all_reduce()
    window.free()
    collectives.all_gather(np.ones(2), ranks)
    told = [call.call for call in recorder.calls]
    for name in (
        "SharedWindow",
        "SharedWindow.all_reduce",
        "SharedWindow.free",
        "collectives.all_gather",
        "all_gather",
    ):
        assert name in told
    assert all(span.end is not None for span in timeline.spans)
    timeline.clear()
    assert timeline.spans == []


@pytest.mark.ranks(2)
def test_what_is_made_of_a_communicator_is_seen_by_the_same(watched):
    ranks, recorder, timeline = watched
    mesh = Mesh(ranks, model=2)
    made = [ranks.duplicate("a"), ranks.split(0, name="b"), Communicator(ranks, name="c"), mesh.model]
    for one in made:
        one.labelled("layer").all_reduce(np.ones(1))
        assert (timeline.spans[-1].communicator, timeline.spans[-1].layer) == (one.name, "layer")
        assert recorder.calls[-1].communicator == one.name
    mesh.free()
    for one in made[:2]:
        one.free()


# -- arguments that cannot be meant ----------------------------------------------------------------------------------
BUFFER = np.zeros(4, np.float32)
WRONG = {
    "receive(buffer, source)": (
        lambda c: c.receive(BUFFER, 0),
        "receive(source, shape, dtype, tag): source must be a whole number, not an array of float32 (4,); "
        "ireceive(array, source) receives into an array",
    ),
    "receive(source, dtype)": (lambda c: c.receive(0, np.float32), "receive(source, shape, dtype, tag): shape must be"),
    "ireceive(source, array)": (lambda c: c.ireceive(0, BUFFER), "ireceive(array, source, tag): source must be a"),
    "send(destination, array)": (lambda c: c.send(0, BUFFER), "send(array, destination, tag): destination must be a"),
    "reduce(array, op)": (lambda c: c.reduce(BUFFER, "sum"), "reduce(array, root, op): root must be a whole number"),
    "all_reduce(array, out)": (
        lambda c: c.all_reduce(BUFFER, BUFFER),
        "all_reduce(array, op, out): op must be a word, not an array of float32 (4,)",
    ),
    "all_gather(array, sizes)": (
        lambda c: c.all_gather(BUFFER, [4] * c.size),
        "all_gather(array, axis, sizes): axis must be a whole number, not [4",
    ),
    "broadcast(root, array)": (lambda c: c.broadcast(0, BUFFER), "broadcast(array, root, shape, dtype): root must be"),
}


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.ranks(1, 2)
def test_a_likely_wrong_call_is_told_in_one_line(comm, name, checked):
    ranks = Communicator(comm.mpi, checked=checked)
    call, said = WRONG[name]
    with pytest.raises(TypeError, match=re.escape(said)) as caught:
        call(ranks)
    assert "\n" not in str(caught.value)
    ranks.barrier()

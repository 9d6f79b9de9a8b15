"""The simulator against the formulas for every size, against the longest path of a graph, and as a stream."""

import graphlib
import itertools
import math
import random

import pytest
from schedule_plans import graph, plan, plans

from parallel_dl.schedule import (
    Action,
    Deadlock,
    Event,
    PlanError,
    Simulation,
    Times,
    Wire,
    make,
    parse,
    simulate,
    with_messages,
)
from parallel_dl.schedule.grid import grid

TIMES = [(1.0, 1.0, 1.0), (3.0, 4.0, 2.0)]  # forward, backward of the input, of the weights


@pytest.mark.parametrize(("forward", "of_input", "of_weights"), TIMES)
def test_idle_time_of_every_size(forward, of_input, of_weights):
    both = forward + of_input + of_weights
    for name, p, m, chunks, each in plans():
        v = chunks or 1
        found = simulate(each, Times(forward / v, of_input / v, of_weights / v))
        idle = {
            "naive": (p - 1) * m * both,
            "interleaved": (p - 1) * both / v,
            "zb-h1": (p - 1) * (forward + of_input) - (min(p, m) - 1) * of_weights,
        }.get(name, (p - 1) * both)
        here = name, p, m, chunks
        assert found.idle == pytest.approx([idle] * p, abs=1e-9), here
        assert found.makespan == pytest.approx(m * both + idle), here
        assert found.throughput == pytest.approx(m / found.makespan), here
        assert found.latency == pytest.approx(p * forward), here
        assert found.bubble_overhead == pytest.approx(idle / (m * both)), here
        if name in ("gpipe", "1f1b", "pipedream"):
            assert found.idle_fraction == pytest.approx((p - 1) / (m + p - 1), rel=1e-12), here
            assert found.idle_shares == pytest.approx([(p - 1) / (m + p - 1)] * p, rel=1e-12), here
            assert found.concurrency == pytest.approx(p * m / (m + p - 1), rel=1e-12), here
        if name == "naive":
            assert found.concurrency == pytest.approx(1), here
        # the critical path has no time between its links, as messages are free
        path = found.critical_path
        assert path[0].start == 0
        assert path[-1].end == pytest.approx(found.makespan)
        assert all(one.end == pytest.approx(other.start) for one, other in itertools.pairwise(path)), here


@pytest.mark.parametrize("weights", [0.0, 0.25, 1.0, 1.5])
@pytest.mark.parametrize(("forward", "of_input"), [(1.5, 2.0), (2.0, 1.5)])
def test_zb_h1_fills_idle_time_with_weight_gradients(weights, forward, of_input):
    for _, p, m, _, each in plans("zb-h1"):
        found = simulate(each, Times(forward, of_input, weights))
        idle = (p - 1) * (forward + of_input) - (min(p, m) - 1) * weights
        assert found.idle == pytest.approx([idle] * p, abs=1e-9), (p, m)


# from their grids: the forwards that run while another rank is in a backward, and the makespan
OVERLAPS = [
    ("1f1b", 2, 2, (1, 1, 1), 1, 9),  # 1F1 with 0B0
    ("1f1b", 3, 4, (1, 1, 1), 6, 18),  # 2F1, 1F2, 2F2, 0F3, 1F3, 2F3, one after the other
    ("1f1b", 2, 2, (3, 1, 1), 2, 15),  # 1F1 from 8 to 11, 0B0 from 8 to 10
    ("zb-h1", 2, 3, (1, 1, 1), 3, 10),  # 1F1 with 0I0, 0F2 with 1W0, 1F2 with 0I1
    ("1f1b", 1, 9, (1, 1, 1), 0, 27),  # one rank
]


@pytest.mark.parametrize(("name", "p", "m", "times", "together", "makespan"), OVERLAPS)
def test_overlap_by_hand(name, p, m, times, together, makespan):
    found = simulate(plan(name, p, m), Times(*times))
    assert (found.makespan, found.overlap) == (makespan, together / makespan)


def test_overlap_is_counted_once_and_of_other_microbatches_only():
    """Three ranks at a time are one overlap; a forward and a backward of one microbatch, or two forwards, are none."""

    def of(*events):
        told = [Event(rank, Action.parse(action), start, end) for rank, (action, start, end) in enumerate(events)]
        return Simulation(parse("0F0 0B0"), tuple(told), 10.0, (), ()).overlap

    assert of(("0F1", 0, 4), ("1B0", 1, 3), ("2W0", 2, 6)) == 0.3
    assert of(("0F0", 0, 4), ("1B0", 1, 3)) == 0
    assert of(("0F0", 0, 4), ("1B0", 1, 3), ("2F2", 2, 8)) == 0.1
    assert of(("0F0", 0, 4), ("1F1", 1, 3), ("2U2", 0, 8)) == 0
    assert of(("0F0", 0, 4), ("1B1", 4, 8), ("2B1", 2, 2)) == 0


def test_overlap_of_every_size():
    """Naive and gpipe have none; with 2 ranks 1f1b has all but the first two of rank 0 and the first of rank 1."""
    draw = random.Random(4)
    for name, p, m, chunks, each in plans("naive", "gpipe", "1f1b"):
        times = Times(*([draw.choice([0.1, 0.5, 1.7]) for _ in range(each.stages)] for _ in range(3)))
        if name in ("naive", "gpipe"):
            assert simulate(each, times).overlap == 0, (name, p, m, chunks)
        elif p == 2:
            found = simulate(each)
            assert found.overlap == pytest.approx((2 * m - 3) / found.makespan if m > 1 else 0), m


def test_latency_of_a_sample():
    """The stages, and p - 1 messages; three latencies each above the eager limit."""
    for name, p, m, chunks, each in plans("gpipe", "1f1b", "naive", "pipedream"):
        if m > 4:
            continue
        times = [1 + stage / 4 for stage in range(p)]
        for limit, latencies in ((None, 1), (1000, 1), (999, 3)):
            found = simulate(each, Times(times), Wire(0.5, 0.001, 1000, limit))
            assert found.latency == pytest.approx(sum(times) + (p - 1) * (latencies * 0.5 + 1)), (name, p, m, chunks)


def longest_path(each, times, wire):
    """Makespan, told in another way: the longest way through the graph of programs and messages."""
    holds = each.blocking and wire.is_rendezvous
    before = graph(each, joined=holds)
    ends = {}
    for action in graphlib.TopologicalSorter(before).static_order():
        start = 0.0
        for needed in before[action]:
            on_its_way = not holds and needed == (action.partner if action.kind in ("RF", "RB") else None)
            start = max(start, ends[needed] + (wire.seconds if on_its_way else 0.0))
        sends = holds and action.kind in ("SF", "SB")
        takes = wire.seconds if sends else times.of(action) if len(action.kind) == 1 else 0.0
        ends[action] = start + takes
    return max(ends.values())


WIRES = [Wire(), Wire(0.3), Wire(0.1, 0.01, 50, 49), Wire(0.1, 0.01, 50, 50)]


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("blocking", [False, True])
def test_makespan_is_the_longest_path(wire, blocking):
    draw = random.Random(str(wire))
    deadlocks = 0
    for name, p, m, chunks, each in plans():
        if p > 5 or m > 6:
            continue
        times = Times(*([draw.choice([0.5, 1, 2, 3]) for _ in range(each.stages)] for _ in range(4)))
        each = with_messages(each, blocking)
        try:
            expected = longest_path(each, times, wire)
        except graphlib.CycleError:
            deadlocks += 1
            with pytest.raises(Deadlock, match="waits for rank"):
                simulate(each, times, wire)
            continue
        found = simulate(each, times, wire)
        assert found.makespan == pytest.approx(expected), (name, p, m, chunks)
        path = found.critical_path
        assert path[0].start == pytest.approx(0)
        for one, other in itertools.pairwise(path):  # what is between its links are messages
            wait = other.start - one.end
            assert wait / wire.seconds == pytest.approx(round(wait / wire.seconds)) if wire.seconds else wait < 1e-9
        for rank in range(p):
            own = [event for event in found.events if event.rank == rank]
            assert [event.action for event in own] == [a for a in each.programs[rank] if len(a.kind) == 1]
            assert all(one.end <= other.start for one, other in itertools.pairwise(own))
            assert found.busy[rank] == pytest.approx(sum(event.end - event.start for event in own))
    assert bool(deadlocks) == (blocking and wire.is_rendezvous)


def test_a_blocking_send_above_the_limit_holds_both_ranks():
    """Rank 1 is there first and waits; then both are held for three latencies."""
    each = with_messages(parse("0F0 0B0\n1F0 1B0"), blocking=True)
    found = simulate(each, Times(2, 1, 1), Wire(0.5, 0, 2, 1))
    assert [(str(event.action), event.start) for event in found.events] == [
        ("0F0", 0), ("1F0", 3.5), ("1B0", 5.5), ("0B0", 9.0)
    ]  # fmt: skip
    # below it the sender goes on at once
    each = with_messages(make("gpipe", 2, 2), blocking=True)
    held, free = (simulate(each, wire=Wire(0.5, 0, 2, limit)) for limit in (1, 2))
    starts = [[event.start for event in found.events if str(event.action) == "0F1"] for found in (held, free)]
    assert starts == [[2.5], [1.0]]


def test_an_update_takes_its_time():
    found = simulate(plan("pipedream", 1, 3), Times(1, 1, 1, 0.5))
    assert found.makespan == 10.5


# -- a stream --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["1f1b", "pipedream", "zb-h1"])
@pytest.mark.parametrize("slowest", [0, pytest.param(1, marks=pytest.mark.grid), 3])
@pytest.mark.parametrize("load", [0.9, *(pytest.param(load, marks=pytest.mark.grid) for load in (0.3, 1.0, 3.0)), 1.1])
def test_throughput_of_a_stream_is_that_of_the_slowest_stage(name, slowest, load):
    forward = [1.0] * 4
    forward[slowest] = 2.0
    capacity = 1 / (2.0 + 2.0)
    rate = load * capacity
    found = simulate(with_messages(make(name, 4, 240)), Times(forward), input_rate=rate)
    assert found.steady_throughput == pytest.approx(min(rate, capacity))
    assert found.queue_growth == pytest.approx(max(0, rate - capacity), abs=1e-9)
    first, last = found.entries[120], found.entries[-1]
    slope = (found.queue(last) - found.queue(first)) / (last - first)
    assert slope == pytest.approx(found.queue_growth, abs=3 / (last - first))
    assert all(entry >= j / rate - 1e-9 for j, entry in enumerate(found.entries))


@pytest.mark.parametrize("load", [0.5, 2.0])
def test_a_stream_through_naive_has_all_stages_one_after_the_other(load):
    capacity = 1 / (1 + 2 + 3 + 3 * 2)
    found = simulate(with_messages(make("naive", 3, 60)), Times([1, 2, 3]), input_rate=load * capacity)
    assert found.steady_throughput == pytest.approx(min(load, 1) * capacity)
    assert found.queue_growth == pytest.approx(max(0, load - 1) * capacity)
    assert (found.queue(found.entries[-1]) > 5) == (load > 1)


def test_the_queue_is_counted():
    """Microbatches come at 0, 1, 2, ... and enter at 0, 3, 6, ..."""
    found = simulate(plan("naive", 1, 3), input_rate=1.0)
    assert found.entries == (0, 3, 6)
    assert [found.queue(time) for time in (0, 0.9, 1, 2.9, 3, 5.5, 6)] == [0, 0, 1, 2, 2, 4, 4]


def test_interleaved_takes_a_stream_in_groups():
    for microbatches in (16, 80):
        found = simulate(with_messages(make("interleaved", 4, microbatches, 2)), input_rate=1.0)
        assert found.steady_throughput == pytest.approx(1 / 6)


def test_there_may_be_no_steady_state():
    for each in (make("gpipe", 2, 50), make("1f1b", 4, 7)):
        found = simulate(with_messages(each), input_rate=0.1)
        assert found.steady_throughput is None
        assert found.queue_growth is None
    assert simulate(plan("1f1b", 2, 16)).queue_growth is None
    assert simulate(plan("1f1b", 2, 16)).queue(3.0) == 0


# -- what is no number -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, 1e200])
def test_numbers_that_are_refused(bad):
    for make_one, said in (
        (lambda: Times(bad), "^forward .*: must be a finite number, at least 0"),
        (lambda: Times(1, [1, bad]), "^backward_input"),
        (lambda: Wire(bad), "^latency"),
        (lambda: Wire(eager_limit=bad), "^eager_limit"),
        (lambda: simulate(plan("1f1b", 2, 2), input_rate=bad), "^input_rate .*: must be a finite number above 0"),
        (lambda: simulate(plan("1f1b", 2, 2), input_rate=0), "^input_rate"),
        (lambda: simulate(plan("1f1b", 3, 2), Times([1, 1])), "forward: has times for 2 stages, none for stage 2"),
    ):
        with pytest.raises(PlanError, match=said):
            make_one()


def test_a_step_without_time():
    found = simulate(plan("1f1b", 2, 2), Times(0, 0, 0))
    assert (found.makespan, found.latency, found.throughput) == (0, 0, math.inf)
    assert math.isnan(found.idle_fraction)
    assert math.isnan(found.concurrency)
    assert math.isnan(found.overlap)
    assert ["".join(piece.text for piece in row) for row in grid(found, 80)] == ["", ""]


def test_a_deadlock_is_no_simulation():
    each = with_messages(make("1f1b", 2, 2), blocking=True)
    simulate(each, wire=Wire(1, 0, 8, 8))
    with pytest.raises(Deadlock, match="rank 0 at 0SF1 waits for rank 1, rank 1 at 1SB0 waits for rank 0"):
        simulate(each, wire=Wire(1, 0, 9, 8))


# -- the grid --------------------------------------------------------------------------------------------------
def rows(found, width=1000):
    return ["".join(piece.text for piece in row) for row in grid(found, width)]


def test_grid():
    assert rows(simulate(plan("1f1b", 2, 2))) == [
        "F0 F1 ......B0--- ...B1--- ",
        "...F0 B0--- F1 B1--- ......",
    ]
    assert rows(simulate(plan("interleaved", 2, 2, 2)))[1].startswith("....1F0 1F1 ")
    assert rows(simulate(plan("1f1b", 1, 2), Times(2, 1, 0))) == ["F0--- B0 F1--- B1 "]


def test_grid_of_other_units_is_the_same():
    for scale in (1e-7, 0.3, 1e6):
        assert rows(simulate(plan("zb-h1", 3, 4), Times(scale, scale, scale))) == rows(simulate(plan("zb-h1", 3, 4)))


def test_grid_of_a_narrow_screen():
    for name, _, _, _, each in itertools.islice(plans(), 0, None, 37):
        for width in (20, 47, 80):
            found = rows(simulate(each), width)
            assert len({len(row) for row in found}) == 1, name
            assert len(found[0]) <= width
    # too short for its name: the kind
    assert rows(simulate(plan("1f1b", 1, 4)), 12) == ["FB0FB1FB2FB3"]

"""The virtual clock of the three schemes of "One weird trick", on numbers that are exact in binary."""

import pytest

from parallel_dl.schedule import ALL, SCHEMES, Times, Wire, one_weird_trick, simulate


def timeline(scheme, ranks, forward, backward, send, reduce=None):
    """Forward and backward of the whole batch by all ranks, `send` of one share to all others, `reduce` back."""
    parts, messages = {"a": 1}.get(scheme, ranks), {"c": ranks}.get(scheme, 1)
    times = Times(forward=(0.0, forward / parts), backward_input=(0.0, backward / parts), backward_weight=0.0)
    reduce = send if reduce is None else reduce
    wire = Wire(seconds_per_byte=1.0, bytes=send / messages, gradient_bytes=reduce / messages)
    return simulate(one_weird_trick(ranks, [range(parts)]), times, wire)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_all_but_one_of_k_transfers_is_hidden(ranks):
    """When computing takes longer than sending: exactly (K - 1) / K of it."""
    forward, backward, send = 8.0 * ranks, 16.0 * ranks, 4.0
    b = timeline("b", ranks, forward, backward, send)
    assert b.communication == 2 * ranks * send
    assert b.makespan == forward + backward + 2 * send
    assert b.hidden == (ranks - 1) / ranks
    c = timeline("c", ranks, forward, backward, send)
    assert c.communication == 2 * send
    assert c.makespan == forward + backward + 2 * send / ranks
    assert c.hidden == (ranks - 1) / ranks
    a = timeline("a", ranks, forward, backward, send)
    assert (a.makespan, a.communication, a.hidden) == (forward + backward + 2 * send, 2 * send, 0)


def test_exactly_as_long_is_hidden_and_longer_is_not():
    """A part's forward takes 4 and its backward 8: 12 for what arrives next, 4 for what goes back."""
    assert timeline("b", 4, 16, 32, send=12, reduce=4).hidden == 3 / 4
    assert timeline("b", 4, 16, 32, send=12, reduce=4).makespan == 12 + 48 + 4
    assert timeline("b", 4, 16, 32, send=13, reduce=4).makespan == 13 * 4 + 12 + 4
    assert timeline("b", 4, 16, 32, send=12, reduce=5).makespan == 12 + 48 + 3 + 5
    # scheme c sends a fourth in each step: four times as much is hidden
    assert timeline("c", 4, 16, 32, send=48, reduce=16).makespan == 12 + 48 + 4
    assert timeline("c", 4, 16, 32, send=48, reduce=16).hidden == 3 / 4
    # with nothing to compute all of it is waited for
    assert timeline("b", 4, 0, 0, 2).makespan == 4 * 2 + 2 * 4 - 3 * 2  # each reduction beside the next sending
    assert timeline("a", 4, 0, 0, 2).makespan == 4


def test_the_numbers_of_the_page():
    """docs/hybrids.md: 8 ranks, 80 and 160 to compute, 5 to send a share."""
    found = {scheme: timeline(scheme, 8, 80.0, 160.0, 5.0) for scheme in SCHEMES}
    assert {scheme: one.makespan for scheme, one in found.items()} == {"a": 250, "b": 250, "c": 241.25}
    assert {scheme: one.communication for scheme, one in found.items()} == {"a": 10, "b": 80, "c": 10}
    assert {scheme: one.hidden for scheme, one in found.items()} == {"a": 0, "b": 7 / 8, "c": 7 / 8}


def test_one_rank_sends_nothing():
    for scheme in SCHEMES:
        one = timeline(scheme, 1, 3, 5, 100)
        assert (one.makespan, one.communication, one.hidden) == (8, 0, 0)


def test_where_samples_are():
    """The second part is under way while the first computes; its forward is over the first one's reduction."""
    found = timeline("b", 2, 4, 8, 1)
    for rank in range(2):
        done = {
            (e.action.kind, e.action.sub_batch): (e.start, e.end)
            for e in (*found.events, *found.traffic)
            if e.rank == rank and e.action.sub_batch != ALL
        }
        assert done == {
            ("SF", 0): (0, 1),
            ("SF", 1): (1, 2),
            ("F", 0): (1, 3),
            ("B", 0): (3, 7),
            ("SB", 0): (7, 8),
            ("F", 1): (7, 9),
            ("B", 1): (9, 13),
            ("SB", 1): (13, 14),
        }

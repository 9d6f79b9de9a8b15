"""Which ranks can never go on, from states written by hand: no MPI, no clock."""

import dataclasses

import pytest

from parallel_dl.watchdog import State, picture
from parallel_dl.watchdog.deadlock import in_circles, odd_ones, stuck
from parallel_dl.watchdog.record import Group, this_rank
from parallel_dl.watchdog.state import Wait
from parallel_dl.watchdog.watchdog import ENDS, GOES_ON, QUIET, STATE, WAITS, Watchdog

ALL = (0, 1, 2, 3)


def receive(source, tag=0, group="world", call="Recv"):
    return Wait("receive", f"{call}()", group, group, source, tag, 0, ALL)


def send(to, tag=0, group="world"):
    return Wait("send", "Send()", group, group, to, tag, 0, ALL)


def collective(number, call="Barrier", group="world", members=ALL):
    return Wait("collective", f"{call}()", group, group, None, None, number, members)


def state(rank, *waits, **more):
    reached = {wait.group: wait.number for wait in waits if wait.kind == "collective"}
    more.setdefault("collectives", reached)
    return State(rank, 1, 1.0, waits, call=waits[0].call if waits else "", **more)


def found(*states, ended=()):
    known = {one.rank: one for one in (*states, *ended)}
    return stuck(known, {one.rank for one in ended})


def test_two_that_receive_first():
    assert found(state(0, receive(1)), state(1, receive(0))) == {0, 1}


def test_a_rank_in_its_own_code_may_still_send():
    assert found(state(0, receive(1))) == set()
    assert found(state(0, receive(1)), state(1)) == set()


def test_those_that_wait_for_a_deadlock_are_stuck_too():
    barrier = collective(1)
    states = [state(0, receive(1)), state(1, receive(0)), state(2, barrier), state(3, barrier)]
    assert found(*states) == {0, 1, 2, 3}
    assert in_circles({0, 1, 2, 3}, {one.rank: one for one in states}) == {0, 1}


def test_other_collectives_at_the_same_place_are_never_complete():
    four = [state(r, collective(3), calls={"world": {3: "Barrier"}}) for r in (0, 1, 2)]
    four.append(state(3, collective(3, "Allreduce"), calls={"world": {2: "Barrier", 3: "allreduce"}}))
    known = {one.rank: one for one in four}
    assert found(*four) == {0, 1, 2, 3}
    assert picture.headline(known, known, ()).endswith("rank 3 called Allreduce but ranks 0, 1 and 2 called Barrier")
    assert picture.by_blame(known, known, ()) == [3, 0, 1, 2]
    names = ("Ibarrier", "barrier", "Barrier", "barrier")
    same = [dataclasses.replace(one, calls={"world": {3: name}}) for one, name in zip(four, names)]
    assert found(*same) == set()


def test_a_receive_that_its_message_waits_for_is_no_hint():
    waits = state(0, receive(1, 7), receive(2, 7))
    others = [state(1, sent={("world", 0, 7): 1}), state(2)]
    assert picture.hint(waits, {one.rank: one for one in (waits, *others)}) == ""


def test_a_message_under_way_is_no_deadlock():
    sent = {("world", 0, 5): 2}
    waits = state(0, receive(1, 5), received={("world", 1, 5): 1})
    assert found(waits, state(1, collective(1), sent=sent)) == set()
    assert found(dataclasses.replace(waits, received={("world", 1, 5): 2}), state(1, collective(1), sent=sent)) == {
        0,
        1,
    }


@pytest.mark.parametrize(("tag", "group"), [(6, "world"), (5, "half")])
def test_a_message_that_does_not_match_does_not_count(tag, group):
    assert found(state(0, receive(1, 5)), state(1, collective(1), sent={(group, 0, tag): 1})) == {0, 1}


def test_any_tag_takes_it():
    assert found(state(0, receive(1, None)), state(1, collective(1), sent={("world", 0, 9): 1})) == set()


def test_any_source_waits_for_all():
    three = [state(rank, collective(1)) for rank in (1, 2, 3)]
    assert found(state(0, receive(None)), *three) == {0, 1, 2, 3}
    assert found(state(0, receive(None)), *three[:2]) == set()
    assert found(state(0, receive(None)), *three[:2], state(3, collective(1), sent={("world", 0, 0): 1})) == set()


def test_a_send_waits_for_its_receive():
    assert found(state(0, send(1)), state(1, send(0))) == {0, 1}
    assert found(state(0, send(1)), state(1, receive(0))) == set()
    assert found(state(0, send(1, 3)), state(1, receive(0, 4))) == {0, 1}
    assert found(state(0, send(1)), state(1, collective(1), posted=(receive(0),))) == set()


def test_both_ways_of_an_exchange():
    """What it sends may have been taken already; what it receives has not come."""
    ring = [state(rank, send((rank + 1) % 3), receive((rank - 1) % 3)) for rank in range(3)]
    sent = [dataclasses.replace(one, sent={("world", (one.rank + 1) % 3, 0): 1}) for one in ring]
    assert found(*sent) == set()
    assert found(*ring) == {0, 1, 2}
    assert found(state(0, send(1), receive(2)), state(1, collective(1))) == set()  # rank 2 computes


def test_one_of_several_is_enough_or_not():
    waits = (receive(1), receive(2))
    others = [state(1, collective(1)), state(2, collective(1), sent={("world", 0, 0): 1}), state(3, collective(1))]
    assert found(state(0, *waits, one_is_enough=True), *others) == set()
    assert found(state(0, *waits), *others) == {0, 1, 2, 3}


def test_a_collective_waits_for_those_that_have_not_come():
    assert found(*(state(rank, collective(1)) for rank in ALL)) == set()
    assert found(*(state(rank, collective(2)) for rank in range(3)), state(3, collectives={"world": 1})) == set()
    ended = state(3, collectives={"world": 1})
    assert found(*(state(rank, collective(2)) for rank in range(3)), ended=[ended]) == {0, 1, 2}
    ended = state(3, collectives={"world": 2})
    assert found(*(state(rank, collective(2)) for rank in range(3)), ended=[ended]) == set()


def test_who_calls_what_most_do_not():
    half = collective(1, "Allreduce", "half", (0, 1))
    states = [state(0, half), state(1, collective(1, "Allreduce")), *(state(r, collective(1)) for r in (2, 3))]
    known = {one.rank: one for one in states}
    assert stuck(known, ()) == {0, 1, 2, 3}
    assert odd_ones(known) == {1: "Barrier"}
    assert picture.by_blame(known, known, ())[0] == 1


def test_who_waits_in_a_collective_has_come():
    """Whatever it says of how many it has begun."""
    assert found(*(state(rank, collective(3), collectives={}) for rank in ALL)) == set()


def test_each_communicator_compares_in_a_group_of_its_own():
    group = Group("world", ALL, "world")
    first, second = group.comparisons(), group.comparisons()
    assert first.key != second.key
    assert first.is_of_comparisons
    assert this_rank.groups.pop(first.key) is first
    assert this_rank.groups.pop(second.key) is second


def test_a_program_with_threads_is_never_sure():
    assert found(state(0, receive(1), others=1), state(1, receive(0))) == set()


def test_messages_that_are_not_counted_may_still_come():
    assert found(state(0, receive(1), inexact=frozenset({"world"})), state(1, receive(0))) == set()


# -- the launcher's side ----------------------------------------------------------------------------------------------
class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def watched(*states):
    """A watchdog that has heard these, its clock, and what it has asked."""
    clock, asked = Clock(), []
    dog = Watchdog(asked.append, clock)
    for one in states:
        dog.hear(one.rank, WAITS, (one,))
    return dog, clock, asked


def answered(dog, clock, asked, *states):
    """What it says after these answers."""
    for _ in range(20):
        clock.now += 0.1
        before = len(asked)
        said = dog.look()
        if said is not None:
            return said
        if len(asked) > before:
            for one in states:
                dog.hear(one.rank, STATE, (asked[-1][1], one))
    return None


def test_two_equal_looks_are_needed():
    pair = state(0, receive(1)), state(1, receive(0))
    dog, clock, asked = watched(*pair)
    said = answered(dog, clock, asked, *pair)
    assert said.ranks == {0, 1}
    assert said.line == "deadlock: ranks 0 and 1 wait for each other"
    assert clock.now < 1.5
    dog, clock, asked = watched(*pair)
    gone_on = dataclasses.replace(pair[0], number=2)
    assert answered(dog, clock, asked, gone_on, pair[1]) is None
    dog, clock, asked = watched(*pair)
    has_sent = dataclasses.replace(pair[0], sent={("world", 1, 0): 1})
    assert answered(dog, clock, asked, has_sent, pair[1]) is None


def test_without_an_answer_nothing_is_certain():
    pair = state(0, receive(1)), state(1, receive(0))
    dog, clock, asked = watched(*pair)
    assert answered(dog, clock, asked, pair[0]) is None
    assert asked


def test_who_goes_on_is_forgotten():
    dog, clock, asked = watched(state(0, receive(1)), state(1, receive(0)))
    dog.hear(1, GOES_ON, ())
    assert answered(dog, clock, asked) is None
    assert not asked


def test_an_end_is_named():
    three = [state(rank, collective(2)) for rank in range(3)]
    dog, clock, asked = watched(*three)
    dog.hear(3, ENDS, (state(3, collectives={"world": 1}, where="lab.py:9"),))
    said = answered(dog, clock, asked, *three)
    assert said.line == "deadlock: rank 3 has ended, and ranks 0, 1 and 2 wait for it"
    assert said.picture[0].split() == ["rank", "3", "has", "ended;", "its", "last", "call:", "lab.py:9"]


def test_a_slow_rank_is_named_once_and_not_called_wrong():
    three = [state(rank, collective(1)) for rank in range(3)]
    dog, clock, asked = watched(*three)
    slow = dataclasses.replace(state(3, where="lab.py:5 in work"), seconds=QUIET + 1)
    for _ in range(4):
        assert answered(dog, clock, asked, *three, slow) is None
        clock.now += QUIET
    assert dog.notices == [
        f"rank 3 has been in its own code for {QUIET + 1:.0f} s, at lab.py:5 in work; ranks 0, 1 and 2 wait for it"
    ]


def test_what_is_left_at_the_end():
    dog, _, _ = watched()
    dog.hear(0, ENDS, (state(0, sent={("world", 1, 7): 2, ("world", 1, 8): 1}, names={"world": "MPI.COMM_WORLD"}),))
    dog.hear(1, ENDS, (state(1, received={("world", 0, 7): 1, ("world", 0, 8): 1}, unfinished=("Isend() on world",)),))
    assert dog.leftovers() == [
        "rank 1 never waited for Isend() on world",
        "rank 1 never received a message from rank 0 with tag 7 on MPI.COMM_WORLD",
    ]

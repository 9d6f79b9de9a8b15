"""Which ranks can never go on: arithmetic on the states of all ranks.

A rank in its own code can go on, and one that waits can if what it waits for may still come. Those that remain wait for
each other, or for ranks that have ended. If their states are the same at two moments, with nothing sent meanwhile, that
is certain: MPI has nothing left to do for them.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping

from parallel_dl.watchdog.record import COLLECTIVE, RECEIVE, SEND
from parallel_dl.watchdog.state import State, Wait


def stuck(states: Mapping[int, State], ended: Collection[int]) -> set[int]:
    """The ranks that can never go on; `states` are of ranks that wait, and of those that have `ended`.

    Of those that have ended it needs the last states, too. A rank in neither is taken to be in its own code.
    """
    waiting = {rank: state for rank, state in states.items() if state.waits and not state.others and rank not in ended}
    left = set(waiting)
    while True:
        able = {rank for rank in left if _can_go_on(waiting[rank], waiting, left | set(ended), states)}
        if not able:
            return left
        left -= able


def _can_go_on(state: State, waiting: Mapping[int, State], lost: Collection[int], states: Mapping[int, State]) -> bool:
    """Whether a rank's call may still end, when the `lost` ranks do nothing any more."""
    left = unmet(state, states)
    possible = [_may_come(state, wait, waiting, lost, states) for wait in left]
    if not state.one_is_enough and any(not can and wait.kind != SEND for wait, can in zip(left, possible)):
        return False
    # of several sends that it needs some may be complete already, and nobody can tell which
    return len(left) < len(state.waits) or any(possible)


def unmet(state: State, states: Mapping[int, State]) -> list[Wait]:
    """What a rank waits for, without the messages that are there and the sends that have been received."""
    there: dict[tuple, int] = {}
    left = []
    for wait in state.waits:
        if wait.kind == RECEIVE:
            key = wait.group, wait.peer, wait.tag
            peers = [wait.peer] if wait.peer is not None else list(wait.members)
            if key not in there:
                there[key] = sum(under_way(state, peer, wait, states) for peer in peers)
            if there[key] > 0:
                there[key] -= 1
                continue
        elif wait.kind == SEND and _is_received(state, wait, states):
            continue
        left.append(wait)
    return left


def _is_received(state: State, wait: Wait, states: Mapping[int, State]) -> bool:
    other = states.get(-1 if wait.peer is None else wait.peer)
    sent = state.sent.get((wait.group, wait.peer, wait.tag), 0)  # type: ignore[arg-type]
    return other is not None and 0 < sent <= other.received.get((wait.group, state.rank, wait.tag), 0)  # type: ignore


def _may_come(
    state: State, wait: Wait, waiting: Mapping[int, State], lost: Collection[int], states: Mapping[int, State]
) -> bool:
    if wait.kind == COLLECTIVE:
        return _collective_may_end(wait, lost, states)
    peers = [wait.peer] if wait.peer is not None else list(wait.members)
    if any(peer not in lost and peer != state.rank for peer in peers):
        return True
    if wait.group in state.inexact:
        return True
    return wait.kind == SEND and any(peer in waiting and _takes(waiting[peer], state.rank, wait) for peer in peers)


def under_way(state: State, source: int, wait: Wait, states: Mapping[int, State]) -> int:
    """Messages from `source` that this receive would take, sent and not yet received."""
    other = states.get(source)
    if other is None:
        return 0
    if wait.group in other.inexact:
        return sys.maxsize
    count = 0
    for (group, to, tag), sent in other.sent.items():
        if group == wait.group and to == state.rank and (wait.tag is None or wait.tag == tag):
            count += max(0, sent - state.received.get((group, source, tag), 0))
    return count


def _takes(other: State, sender: int, send: Wait) -> bool:
    """Whether a rank that waits takes this message: its own receive does, or one that it has started."""
    return any(
        receive.kind == RECEIVE
        and receive.group == send.group
        and receive.peer in (None, sender)
        and receive.tag in (None, send.tag)
        for receive in (*other.waits, *other.posted)
    )


def _collective_may_end(wait: Wait, lost: Collection[int], states: Mapping[int, State]) -> bool:
    """Any collective may wait for all its ranks, says MPI: also a broadcast, which need not."""
    return len(calls_at(wait, states)) < 2 and not any(rank in lost for rank in missing_in(wait, states))


def missing_in(wait: Wait, states: Mapping[int, State]) -> list[int]:
    """The ranks that have not come to this collective; of a rank that is not known nobody can say."""

    def has_come(rank: int) -> bool:
        state = states[rank]
        is_there = any((other.group, other.number) == (wait.group, wait.number) for other in state.waits)
        return is_there or state.collectives.get(wait.group, 0) >= wait.number

    return [rank for rank in wait.members if rank not in states or not has_come(rank)]


def calls_at(wait: Wait, states: Mapping[int, State]) -> dict[str, list[int]]:
    """What ranks have called as this collective, as far as it is known: name -> ranks; several do not match."""
    found: dict[str, list[int]] = {}
    for rank in wait.members:
        name = states[rank].calls.get(wait.group, {}).get(wait.number) if rank in states else None
        if name is not None:
            found.setdefault(name.removeprefix("I").capitalize(), []).append(rank)
    return found


def differing(ranks: Collection[int], states: Mapping[int, State]) -> tuple[Wait, dict[str, list[int]]] | None:
    """A collective in which one of `ranks` waits and as which others have called another one; what all have called."""
    for rank in sorted(ranks):
        for wait in states[rank].waits:
            if wait.kind == COLLECTIVE and len(calls := calls_at(wait, states)) > 1:
                return wait, calls
    return None


def waits_for(state: State, states: Mapping[int, State]) -> set[int]:
    """The ranks that this rank's call waits for."""
    ranks: set[int] = set()
    for wait in unmet(state, states):
        if wait.kind == COLLECTIVE:
            ranks.update(missing_in(wait, states))
        elif wait.peer is not None:
            ranks.add(wait.peer)
        else:
            ranks.update(rank for rank in wait.members if rank != state.rank)
    return ranks


def reached(rank: int, states: Mapping[int, State]) -> set[int]:
    """The ranks for which this one waits, itself or over others."""
    found: set[int] = set()
    new = {rank}
    while new:
        new = {other for one in new if one in states for other in waits_for(states[one], states)} - found
        found |= new
    return found


def in_circles(ranks: Collection[int], states: Mapping[int, State]) -> set[int]:
    """Those that wait, over others perhaps, for themselves."""
    return {rank for rank in ranks if rank in reached(rank, {one: states[one] for one in ranks})}


def odd_ones(states: Mapping[int, State]) -> dict[int, str]:
    """Ranks whose collective is not the one that most ranks of its communicator call there: what those call."""
    found: dict[int, str] = {}
    at: dict[tuple[str, int], dict[str, list[int]]] = {}
    for rank, state in states.items():
        for wait in state.waits:
            if wait.kind == COLLECTIVE:
                at.setdefault((wait.group, wait.number), {}).setdefault(name_of(wait), []).append(rank)
    for calls in at.values():
        most = max(calls, key=lambda name: len(calls[name]))
        for name, ranks in calls.items():
            if name != most:
                found.update(dict.fromkeys(ranks, most))
    return found


def name_of(wait: Wait) -> str:
    """The call without what it passes."""
    return wait.call.partition("(")[0]

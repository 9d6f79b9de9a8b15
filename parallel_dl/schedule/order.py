"""Who waits for whom: runs all programs side by side, without a clock, as far as messages and collectives allow."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from parallel_dl.schedule.actions import ALL, COLLECTIVES, MESSAGES, RECEIVES, SENDS, Action, Plan


class Wait(NamedTuple):
    """`rank` stands at `action` and waits for rank `other`."""

    rank: int
    action: Action
    other: int

    def __str__(self) -> str:
        return f"rank {self.rank} at {self.action} waits for rank {self.other}"


class Walk(NamedTuple):
    """How far the programs get."""

    order: list[tuple[int, Action]]
    """(rank, action) in an order in which all of them can happen; of a plan that ends, every action"""
    stuck: dict[int, Wait]
    """rank -> what it finally waits for; empty if all programs complete"""


def walk(plan: Plan, rendezvous: bool) -> Walk:
    """Lets every rank go on until none can.

    A receive waits for its sends. A send completes at once, unless it is blocking and `rendezvous`: then it waits until
    the other rank is at its receive, as MPI_Send may above a library's eager limit. A collective waits until all ranks
    of its group have reached it. Messages of a stage that no rank computes are never received.
    """
    programs = plan.programs
    at = [0] * plan.ranks
    sent: set[tuple[int, Action]] = set()
    order: list[tuple[int, Action]] = []
    # in rounds over the ranks, each from the lowest on; in a round only those that wait for one that has gone on
    todo = [(0, rank) for rank in range(plan.ranks)]
    waiting: dict[int, set[int]] = {}  # rank -> those that wait for it
    stuck: dict[int, Wait] = {}

    while todo:
        turn, rank = heappop(todo)
        program = programs[rank]
        start = at[rank]
        stuck.pop(rank, None)
        while at[rank] < len(program):
            action = program[at[rank]]
            together: tuple[int, ...] = (rank,)
            if action.kind in MESSAGES or action.kind in COLLECTIVES:
                other = _missing(plan, rank, action, at, sent, rendezvous)
                if other is not None:
                    waiting.setdefault(other, set()).add(rank)
                    stuck[rank] = Wait(rank, action, other)
                    break
                if action.kind in SENDS:
                    sent.add((rank, action))
                elif action.kind in COLLECTIVES:
                    together = tuple(sorted((rank, *plan.peers(rank, action))))
            for one in together:  # a group leaves its collective at the same time
                order.append((one, action))
                at[one] += 1
                if one != rank:
                    heappush(todo, (turn + (one <= rank), one))
                    for waiter in waiting.pop(one, ()):
                        heappush(todo, (turn + (waiter <= one), waiter))
        if at[rank] > start:
            for waiter in waiting.pop(rank, ()):
                heappush(todo, (turn + (waiter <= rank), waiter))
    return Walk(order, dict(sorted(stuck.items())))


def _missing(
    plan: Plan, rank: int, action: Action, at: list[int], sent: set[tuple[int, Action]], rendezvous: bool
) -> int | None:
    """The first rank that has to come before `rank` can do this action, where all ranks stand `at`, and have `sent`."""
    peers = plan.peers(rank, action)
    if action.is_message and action.sub_batch == ALL:
        peers = peers or (rank,)  # no rank computes that stage: it waits forever
    if action.kind in RECEIVES:
        return next((other for other in peers if (other, action.partner) not in sent), None)
    if action.kind in COLLECTIVES:
        expected = action
    elif plan.blocking and rendezvous and action.sub_batch == ALL:
        expected = action.partner
    else:
        return None
    return next((other for other in peers if plan.programs[other][at[other] : at[other] + 1] != (expected,)), None)


def find_cycle(plan: Plan, rendezvous: bool) -> tuple[Wait, ...]:
    """The cycle of ranks that wait for each other, lowest first; () if every program completes."""
    stuck = walk(plan, rendezvous).stuck
    path: list[int] = []
    rank = min(stuck, default=-1)
    while rank in stuck and rank not in path:
        path.append(rank)
        rank = stuck[rank].other
    circle = path[path.index(rank) :] if rank in path else path  # the last of `path` may wait for one that has ended
    first = circle.index(min(circle)) if rank in path else 0
    return tuple(stuck[rank] for rank in circle[first:] + circle[:first])

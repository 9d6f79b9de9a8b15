"""Who waits for whom: all programs side by side without a clock, as far as their messages let them go."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from parallel_dl.schedule.actions import RECEIVES, SENDS, Action, Plan


class Wait(NamedTuple):
    """`rank` stands at `action` and waits for rank `other`."""

    rank: int
    action: Action
    other: int

    def __str__(self) -> str:
        return f"rank {self.rank} at {self.action} waits for rank {self.other}"


class Walk(NamedTuple):
    """How far the programs come."""

    order: list[tuple[int, Action]]
    """(rank, action) in an order in which all of them can happen; of a plan that ends, every action"""
    stuck: dict[int, Wait]
    """rank -> what it waits for in the end; empty when all programs end"""


def walk(plan: Plan, rendezvous: bool) -> Walk:
    """Lets every rank go on until none can.

    A receive waits for its send. A send goes on at once; but if it is blocking and `rendezvous`, only when the other
    rank stands at its receive, as MPI_Send may above a library's eager limit. Messages of a stage that no rank
    computes are never received.
    """
    holds = plan.blocking and rendezvous
    programs, rank_of = plan.programs, plan.rank_of
    at = [0] * plan.pp
    sent: set[Action] = set()
    order: list[tuple[int, Action]] = []
    # in rounds over the ranks, each from the lowest on; in a round only those that wait for one that has gone on
    todo = [(0, rank) for rank in range(plan.pp)]
    waiting: dict[int, set[int]] = {}  # rank -> those that wait for it
    while todo:
        turn, rank = heappop(todo)
        program = programs[rank]
        start = position = at[rank]
        while position < len(program):
            action = program[position]
            other = rank_of.get(action.partner.stage, rank) if action.kind in RECEIVES + SENDS else rank
            if action.kind in RECEIVES:
                if action.partner not in sent:
                    waiting.setdefault(other, set()).add(rank)
                    break
            elif action.kind in SENDS:
                if holds and programs[other][at[other] : at[other] + 1] != (action.partner,):
                    waiting.setdefault(other, set()).add(rank)
                    break
                sent.add(action)
            order.append((rank, action))
            position += 1
        at[rank] = position
        if position > start:
            for waiter in waiting.pop(rank, ()):
                heappush(todo, (turn + (waiter <= rank), waiter))
    stuck = {}
    for rank, program in enumerate(programs):
        if at[rank] < len(program):
            action = program[at[rank]]
            stuck[rank] = Wait(rank, action, rank_of.get(action.partner.stage, rank))
    return Walk(order, stuck)


def find_cycle(plan: Plan, rendezvous: bool) -> tuple[Wait, ...]:
    """The ranks that wait for each other in a circle, from the lowest on; () when every program ends."""
    stuck = walk(plan, rendezvous).stuck
    path: list[int] = []
    rank = min(stuck, default=-1)
    while rank in stuck and rank not in path:
        path.append(rank)
        rank = stuck[rank].other
    circle = path[path.index(rank) :] if rank in path else path  # the last of `path` may wait for one that has ended
    first = circle.index(min(circle)) if rank in path else 0
    return tuple(stuck[rank] for rank in circle[first:] + circle[:first])

"""The checker: proves a plan before anything runs, or names its first fault.

- every forward once and every backward once (B, or I and then W), each after what it needs
- every send has its receive on the other rank, and between two stages they come in the same order
- no deadlock, neither with buffered sends, which return at once, nor with rendezvous, where a blocking send waits
  for its receive; or else the circle of ranks that wait for each other
- how many activations are alive on a rank at the same time
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from parallel_dl.schedule.actions import COMPUTE, GRADIENTS, SENDS, Action, Plan
from parallel_dl.schedule.order import Wait, find_cycle

MOST_FAULTS = 100  # in one report


@dataclass(frozen=True)
class Report:
    """What is known of a plan."""

    faults: tuple[str, ...]
    """one line each, the first fault first, up to `MOST_FAULTS`; none in a plan that is right"""
    buffered: tuple[Wait, ...]
    """the circle in which it deadlocks when sends are buffered; () if it does not, or if there are faults"""
    rendezvous: tuple[Wait, ...]
    """the same when a blocking send waits for its receive; () for sends that do not block"""
    peak_live: tuple[int, ...]
    """by rank: the most activations that wait for their backward; see `peak_live`"""

    @property
    def ok(self) -> bool:
        """Whether it runs to its end whatever sends do."""
        return not (self.faults or self.buffered or self.rendezvous)

    @property
    def line(self) -> str | None:
        """The first fault, or the deadlock, in one line; None when all is well."""
        if self.faults:
            return self.faults[0]
        if self.buffered:
            return "deadlock: " + ", ".join(map(str, self.buffered))
        if self.rendezvous:
            return "deadlock if sends wait for their receive: " + ", ".join(map(str, self.rendezvous))
        return None


def check(plan: Plan) -> Report:
    """Everything about a plan with its messages (`lowering.with_messages` adds them). Actions are counted from 0."""
    faults = tuple(islice(_faults(plan), MOST_FAULTS))
    if faults:
        return Report(faults, (), (), peak_live(plan))
    buffered = find_cycle(plan, rendezvous=False)
    rendezvous = find_cycle(plan, rendezvous=True) if plan.blocking else buffered
    return Report((), buffered, rendezvous, peak_live(plan))


def peak_live(plan: Plan) -> tuple[int, ...]:
    """By rank: the most forwards whose backward (B, or W) is still to come: m for gpipe, min(p - s, m) for 1f1b.

    Counted are activations of a stage for a microbatch: of interleaved, whose stages are smaller by the number of
    chunks, several make up what a rank of 1f1b keeps.
    """
    changes = {"F": 1, "B": -1, "W": -1}
    peaks = []
    for program in plan.programs:
        live = peak = 0
        for action in program:
            live += changes.get(action.kind, 0)
            peak = max(peak, live)
        peaks.append(peak)
    return tuple(peaks)


def _faults(plan: Plan) -> Iterator[str]:
    every = {action for _, action in plan.actions()}
    if not any(action.kind == "F" for action in every):
        yield "there is no forward pass"
        return
    for stage in range(plan.stages):
        if stage not in plan.rank_of:
            yield f"no rank computes stage {stage}, and the stages are 0 to {plan.stages - 1}"
    for rank, program in enumerate(plan.programs):
        position: dict[Action, int] = {}
        for at, action in enumerate(program):
            position.setdefault(action, at)
        for at, action in enumerate(program):
            fault = _fault(plan, every, position, rank, at)
            if fault:
                yield f"rank {rank}, action {at}: {action} {fault}"
    yield from _incomplete(plan, every)
    yield from _unmatched(plan)


def _fault(plan: Plan, every: set[Action], position: dict[Action, int], rank: int, at: int) -> str | None:
    """What is wrong with one action, seen from its own rank."""
    action = plan.programs[rank][at]
    owner = plan.rank_of.get(action.stage)
    if position[action] != at:
        return f"has been done before, as action {position[action]}"
    if owner != rank:
        return f"is of a stage that {'no rank' if owner is None else f'rank {owner}'} computes"
    if action.kind not in COMPUTE:
        other = action.partner.stage
        if not 0 <= other < plan.stages:
            return f"goes beyond the stages, which are 0 to {plan.stages - 1}"
        if plan.rank_of.get(other) == rank:
            return f"is a message of rank {rank} to itself, which also has stage {other}"
    for needed in _needs(plan, every, action):
        if needed not in position:
            return f"needs {needed}, which rank {rank} never does"
        if position[needed] > at:
            return f"comes before {needed}, action {position[needed]}, which it needs"
    return None


def _needs(plan: Plan, every: set[Action], action: Action) -> Iterator[Action]:
    """What the same rank must have done before."""
    stage, kind, j = action
    rank_of = plan.rank_of

    def gradient(of: int) -> Action:
        return Action(of, "I" if Action(of, "I", j) in every else "B", j)

    if kind == "F" and stage > 0:
        same = rank_of.get(stage - 1) == rank_of[stage]
        yield Action(stage - 1, "F", j) if same else Action(stage, "RF", j)
    elif kind in GRADIENTS:
        yield Action(stage, "F", j)
        if stage + 1 < plan.stages:
            yield gradient(stage + 1) if rank_of.get(stage + 1) == rank_of[stage] else Action(stage, "RB", j)
    elif kind == "W":
        yield Action(stage, "I", j)
    elif kind == "U":
        yield Action(stage, "W" if Action(stage, "W", j) in every else "B", j)
    elif kind == "SF":
        yield Action(stage, "F", j)
    elif kind == "SB":
        yield gradient(stage)


def _incomplete(plan: Plan, every: set[Action]) -> Iterator[str]:
    """Forwards and backwards that are missing, or done in two ways."""
    for stage in range(plan.stages):
        if stage not in plan.rank_of:
            continue
        owner = f"rank {plan.rank_of[stage]}"
        for j in range(plan.microbatches):
            full, gradient, weights = (Action(stage, kind, j) for kind in "BIW")
            if Action(stage, "F", j) not in every:
                yield f"{owner} never does {Action(stage, 'F', j)}"
            if full in every:
                if gradient in every or weights in every:
                    yield f"{owner} does {full} and {gradient if gradient in every else weights}: the same twice"
            elif gradient not in every:
                yield f"{owner} never does {full}"
            elif weights not in every:
                yield f"{owner} never does {weights}, the other half of {gradient}"


def _unmatched(plan: Plan) -> Iterator[str]:
    """Sends without their receive, receives without their send, and those of two stages in different orders."""
    channels: dict[tuple[int, str], tuple[list[Action], list[Action]]] = {}  # of a sending stage: sends, received ones
    for _, action in plan.actions():
        if action.kind in COMPUTE:
            continue
        is_send = action.kind in SENDS
        send = action if is_send else action.partner
        channels.setdefault((send.stage, send.kind), ([], []))[0 if is_send else 1].append(send)
    for sent, received in channels.values():
        if sent == received:
            continue
        all_sent, all_received = set(sent), set(received)
        for send in sent:
            if send not in all_received:
                receiver = plan.rank_of.get(send.partner.stage)
                yield f"rank {plan.rank_of.get(send.stage)} does {send}, but rank {receiver} never does {send.partner}"
        for send in received:
            if send not in all_sent:
                receiver = plan.rank_of.get(send.partner.stage)
                yield f"rank {receiver} does {send.partner}, but rank {plan.rank_of.get(send.stage)} never does {send}"
        if all_sent == all_received:
            for send, other in zip(sent, received):
                if send != other:
                    here, there = plan.rank_of[send.stage], plan.rank_of[send.partner.stage]
                    yield f"rank {here} does {send} where rank {there} receives {other} first: not in the same order"
                    break

"""The checker: proves a plan before anything runs, or names its first fault.

- every forward once and every backward once (B, or I and then W), each after what it needs
- every send has its receive on the other rank, and between two ranks they come in the same order
- the gradients of a replicated stage are summed before its update, and all its ranks reach the same collectives in the
  same order
- no deadlock, neither with buffered sends, which return at once, nor with rendezvous, where a blocking send waits
  for its receive; or else the circle of ranks that wait for each other
- how many activations are alive on a rank at the same time
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from parallel_dl.errors import number_of
from parallel_dl.schedule.actions import (
    ALL,
    COLLECTIVES,
    GRADIENTS,
    REDUCTIONS,
    SENDS,
    Action,
    Plan,
    Program,
)
from parallel_dl.schedule.order import Wait, find_cycle

MOST_FAULTS = 100  # in one report


@dataclass(frozen=True)
class Report:
    """The results of checking a plan."""

    faults: tuple[str, ...]
    """one line each, in order, up to `MOST_FAULTS`; empty for a correct plan"""
    buffered: tuple[Wait, ...]
    """the cycle in which it deadlocks if sends are buffered; () if it does not, or if there are faults"""
    rendezvous: tuple[Wait, ...]
    """the same if a blocking send waits for its receive; () for non-blocking sends"""
    peak_live: tuple[int, ...]
    """by rank: the most activations that await their backward; see `peak_live`"""

    @property
    def ok(self) -> bool:
        """Whether it completes whatever sends do."""
        return not (self.faults or self.buffered or self.rendezvous)

    @property
    def line(self) -> str | None:
        """The first fault, or the deadlock, in one line; None if there is neither."""
        if self.faults:
            return self.faults[0]
        if self.buffered:
            return "deadlock: " + ", ".join(map(str, self.buffered))
        if self.rendezvous:
            return "deadlock if sends wait for their receive: " + ", ".join(map(str, self.rendezvous))
        return None


def check(plan: Plan) -> Report:
    """Checks a plan with its messages (`lowering.with_messages` adds them). Actions are counted from 0."""
    faults = tuple(islice(_faults(plan), MOST_FAULTS))
    if faults:
        return Report(faults, (), (), peak_live(plan))
    buffered = find_cycle(plan, rendezvous=False)
    rendezvous = find_cycle(plan, rendezvous=True) if plan.blocking else buffered
    return Report((), buffered, rendezvous, peak_live(plan))


def peak_live(plan: Plan) -> tuple[int, ...]:
    """By rank: the most forwards whose backward (B, or W) is still to come: m for gpipe, min(p - s, m) for 1f1b.

    Counted are activations of a stage for a microbatch: with interleaved, whose stages are smaller by the number of
    chunks, several make up what a rank of 1f1b keeps. Recomputed activations are alive from then on.
    """
    return tuple(peak(program, lambda action: 1) for program in plan.programs)


def peak(program: Program, size: Callable[[Action], int]) -> int:
    """The most that is alive at a time in one program, where `size(action)` is what a forward leaves alive."""
    recomputed = {action._replace(kind="F") for action in program if action.kind == "R"}
    live = most = 0
    for action in program:
        if action.kind == "R" or (action.kind == "F" and action not in recomputed):
            live += size(action)
        elif action.kind in ("B", "W"):
            live -= size(action)
        most = max(most, live)
    return most


def _faults(plan: Plan) -> Iterator[str]:
    if not any(action.kind == "F" for _, action in plan.actions()):
        yield "there is no forward pass"
        return
    for stage in range(plan.stages):
        if stage not in plan.owners:
            yield f"no rank computes stage {stage}, and the stages are 0 to {plan.stages - 1}"
    ranks = [_Rank(plan, rank) for rank in range(plan.ranks)]
    for rank in ranks:
        yield from rank.faults()
    for rank in ranks:
        yield from rank.incomplete()
    yield from _unmatched(plan)
    yield from _apart(plan)


def _is_replicated(plan: Plan, stage: int) -> bool:
    """Whether several ranks may compute the stage: they sum its gradients, or share its sub-batches."""
    for rank in plan.owners.get(stage, ()):
        for action in plan.programs[rank]:
            if action.kind in COLLECTIVES and action.stage in (stage, ALL):
                return True
            if action.stage == stage and action.sub_batch != ALL:
                return True
    return False


class _Rank:
    """One rank's program, checked on its own."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank, self.program = plan, rank, plan.programs[rank]
        self.position: dict[Action, int] = {}
        for at, action in enumerate(self.program):
            self.position.setdefault(action, at)
        self.own = [
            stage for stage in plan.stages_of[rank] if plan.rank_of[stage] == rank or _is_replicated(plan, stage)
        ]
        self.parts = {  # stage -> its sub-batches, of which (ALL,) is the whole microbatch
            stage: tuple(sorted({a.sub_batch for a in self.program if a.stage == stage and a.kind in "FBIW"} or {ALL}))
            for stage in self.own
        }

    def faults(self) -> Iterator[str]:
        """What is wrong with single actions."""
        for at in range(len(self.program)):
            fault = self._fault(at)
            if fault:
                yield f"rank {self.rank}, action {at}: {self.program[at]} {fault}"

    def _fault(self, at: int) -> str | None:
        plan, rank, action = self.plan, self.rank, self.program[at]
        if self.position[action] != at:
            return f"has been done before, as action {self.position[action]}"
        if action.stage not in (*self.own, ALL):
            owner = plan.rank_of.get(action.stage)
            return f"is of a stage that {'no rank' if owner is None else f'rank {owner}'} computes"
        if action.is_message:
            other = action.partner.stage
            if not 0 <= other < plan.stages:
                return f"goes beyond the stages, which are 0 to {plan.stages - 1}"
            if other in self.own and action.sub_batch == ALL:
                return f"is a message of rank {rank} to itself, which also has stage {other}"
            here, there = (len(plan.owners.get(stage, ())) for stage in (action.stage, other))
            if action.sub_batch == ALL and here != there > 0:
                return f"is between a stage of {here} and one of {number_of(there, 'rank')}"
        for needed in self._needs(action):
            if needed not in self.position:
                return f"needs {needed}, which rank {rank} never does"
            if self.position[needed] > at:
                return f"comes before {needed}, action {self.position[needed]}, which it needs"
        return None

    def _needs(self, action: Action) -> Iterator[Action]:
        """What this rank must have done before."""
        stage, kind, j, part, _ = action
        if kind == "F" and stage > 0:
            if part != ALL or stage - 1 not in self.own:
                yield Action(stage, "RF", j, part)
            else:
                yield Action(stage - 1, "F", j)
        elif kind == "R":
            yield Action(stage, "F", j, part)
        elif kind in GRADIENTS:
            again = Action(stage, "R", j, part)
            yield again if again in self.position else Action(stage, "F", j, part)
            parts = self.parts.get(stage + 1, (ALL,))
            if stage + 1 < self.plan.stages:
                if parts == (ALL,) and stage + 1 in self.own:
                    yield self._gradient(Action(stage + 1, kind, j))
                else:
                    yield from (Action(stage, "RB", j, of_part) for of_part in parts)
        elif kind == "W":
            yield Action(stage, "I", j, part)
        elif kind == "SF":
            yield Action(stage, "F", j, part if part in self.parts[stage] else ALL)
        elif kind == "SB":
            yield self._gradient(action)
        elif kind == "U" or kind in REDUCTIONS:
            yield from self._completed(action)

    def _gradient(self, of: Action) -> Action:
        inputs = of._replace(kind="I")
        return inputs if inputs in self.position else of._replace(kind="B")

    def _completed(self, of: Action) -> Iterator[Action]:
        """What completes the gradients that are summed, or with which weights are updated."""
        for stage in self.own if of.stage == ALL else (of.stage,):
            if of.microbatch != ALL:
                halves = Action(stage, "W", of.microbatch, of.sub_batch)
                yield halves if halves in self.position else halves._replace(kind="B")
            else:
                yield from (a for a in self.program if a.stage == stage and a.kind in ("B", "W"))
            if of.kind == "U" and of.sub_batch == ALL and self.parts[stage] == (ALL,):
                yield from self._sum(stage, of.microbatch)

    def _sum(self, stage: int, microbatch: int) -> Iterator[Action]:
        """The sum over the ranks of a replicated stage."""
        if len(self.plan.owners[stage]) == 1 or not _is_replicated(self.plan, stage):
            return
        sums = [a for a in self.program if a.kind in REDUCTIONS and a.stage in (stage, ALL)]
        yield next((a for a in sums if a.microbatch in (microbatch, ALL)), Action(stage, "AR", microbatch))

    def incomplete(self) -> Iterator[str]:
        """Forwards and backwards that are missing, or done in two ways; gathers of weights in shards."""
        who = f"rank {self.rank}"
        for stage in self.own:
            for j in range(self.plan.microbatches):
                for part in self.parts[stage]:
                    full, gradient, weights = (Action(stage, kind, j, part) for kind in "BIW")
                    if Action(stage, "F", j, part) not in self.position:
                        yield f"{who} never does {Action(stage, 'F', j, part)}"
                    if full in self.position:
                        if gradient in self.position or weights in self.position:
                            twice = gradient if gradient in self.position else weights
                            yield f"{who} does {full} and {twice}: the same twice"
                    elif gradient not in self.position:
                        yield f"{who} never does {full}"
                    elif weights not in self.position:
                        yield f"{who} never does {weights}, the other half of {gradient}"
        kinds = {action.kind for action in self.program}
        if "RS" in kinds and "U" in kinds and "AG" not in kinds:
            yield f"{who} updates shards of its weights, and never gathers them: AG is missing"


def _unmatched(plan: Plan) -> Iterator[str]:
    """Sends without their receive, receives without their send, and those of two ranks in different orders."""
    # stage and kind of the send, sender, receiver -> what is sent, what is received
    channels: dict[tuple[int, str, int | None, int | None], tuple[list[Action], list[Action]]] = {}
    for rank, action in plan.actions():
        if not action.is_message:
            continue
        for other in plan.peers(rank, action) or ((None,) if action.sub_batch == ALL else ()):
            if action.kind in SENDS:
                channels.setdefault((action.stage, action.kind, rank, other), ([], []))[0].append(action)
            else:
                send = action.partner
                channels.setdefault((send.stage, send.kind, other, rank), ([], []))[1].append(send)
    for (_, _, sender, receiver), (sent, received) in channels.items():
        if sent == received:
            continue
        all_sent, all_received = set(sent), set(received)
        for send in sent:
            if send not in all_received:
                yield f"rank {sender} does {send}, but rank {receiver} never does {send.partner}"
        for send in received:
            if send not in all_sent:
                yield f"rank {receiver} does {send.partner}, but rank {sender} never does {send}"
        if all_sent == all_received:
            for send, other_send in zip(sent, received):
                if send != other_send:
                    yield (
                        f"rank {sender} does {send} where rank {receiver} receives {other_send} first: "
                        "not in the same order"
                    )
                    break


def _apart(plan: Plan) -> Iterator[str]:
    """Collectives that only some ranks of a group do, or that two ranks of it reach in different orders."""
    every = [frozenset(program) for program in plan.programs]
    for rank, program in enumerate(plan.programs):
        meetings: dict[int, list[Action]] = {}  # other rank, above ours -> the collectives to be met in
        for action in program:
            if action.kind in COLLECTIVES:
                for other in plan.peers(rank, action):
                    if action not in every[other]:
                        yield f"rank {rank} does {action}, but rank {other} never does it"
                    elif other > rank:
                        meetings.setdefault(other, []).append(action)
        for other, ours in meetings.items():
            wanted = set(ours)
            for mine, theirs in zip(ours, [action for action in plan.programs[other] if action in wanted]):
                if mine != theirs:
                    yield f"rank {rank} does {mine} where rank {other} does {theirs} first: not in the same order"
                    break

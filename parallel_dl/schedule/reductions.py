"""Passes for the end of a step: replicas that sum their gradients, the update, and sharded optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from parallel_dl.schedule.actions import ALL, Action, Plan


def with_update(plan: Plan, stage: int = ALL) -> Plan:
    """The plan with an update at the end of each program, of all weights of the rank or of one stage's.

    A plan that updates after each microbatch is left as it is.
    """
    return plan if plan.is_asynchronous else _each(plan, lambda action: [action], [Action(stage, "U")])


def with_all_reduce(plan: Plan, stage: int | None = None) -> Plan:
    """The plan with an all-reduce, of `stage` or of what is updated, before each update but those of sub-batches."""

    def summed(action: Action) -> list[Action]:
        if action.kind != "U" or action.sub_batch != ALL:
            return [action]
        return [action._replace(kind="AR", stage=action.stage if stage is None else stage), action]

    return _each(plan, summed)


def replicated(plan: Plan, replicas: int, partial: bool = False) -> Plan:
    """Data parallelism: this many ranks, side by side, run each program, and sum their gradients before each update.

    That is once, over all weights of a rank; in an asynchronous plan it is for each stage and microbatch. One replica
    sums nothing, unless its gradients are `partial`: summands on ranks that share a layer.
    """
    if replicas == 1 and not partial:
        return plan
    summed = with_all_reduce(plan).programs
    return replace(plan, programs=tuple(program for program in summed for _ in range(replicas)))


def with_sharded_state(plan: Plan) -> Plan:
    """Each replica sums and updates a shard of the weights, then all gather them (ZeRO, arXiv 1910.02054, stage 2)."""

    def shards(action: Action) -> list[Action]:
        if action.kind == "AR":
            return [action._replace(kind="RS")]
        return [action, action._replace(kind="AG")] if action.kind == "U" else [action]

    return _each(plan, shards) if any(action.kind == "AR" for _, action in plan.actions()) else plan


def with_recomputation(plan: Plan) -> Plan:
    """Repeats each forward right before its backward, so that only inputs are kept (Chen et al., arXiv 1604.06174)."""
    return _each(plan, lambda a: [a._replace(kind="R"), a] if a.kind in ("B", "I") else [a])


def _each(plan: Plan, change: Callable[[Action], Iterable[Action]], end: Iterable[Action] = ()) -> Plan:
    return replace(
        plan, programs=tuple((*(new for a in program for new in change(a)), *end) for program in plan.programs)
    )

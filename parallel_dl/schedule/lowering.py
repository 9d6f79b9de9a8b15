"""Lowering: sends and receives are added to programs that only compute."""

from __future__ import annotations

from dataclasses import replace

from parallel_dl.schedule.actions import GRADIENTS, Action, Plan


def with_messages(plan: Plan, blocking: bool | None = None) -> Plan:
    """The plan with every send and receive that it needs; the programs of one that has any are left as they are.

    A receive stands right before the action that needs it, a send right after the action that makes what is sent.
    Nothing is sent between two stages of one rank. `blocking`: see `Plan`; None leaves it as it is.
    """
    if blocking is None:
        blocking = plan.blocking
    if plan.has_messages:
        return replace(plan, blocking=blocking)
    rank_of = plan.rank_of

    def travels(stage: int, other: int) -> bool:
        return other in rank_of and rank_of[stage] != rank_of[other]

    programs = []
    for program in plan.programs:
        lowered: list[Action] = []
        for action in program:
            stage, kind, j = action
            before, after = travels(stage, stage - 1), travels(stage, stage + 1)
            if kind == "F" and before:
                lowered.append(Action(stage, "RF", j))
            if kind in GRADIENTS and after:
                lowered.append(Action(stage, "RB", j))
            lowered.append(action)
            if kind == "F" and after:
                lowered.append(Action(stage, "SF", j))
            if kind in GRADIENTS and before:
                lowered.append(Action(stage, "SB", j))
        programs.append(tuple(lowered))
    return replace(plan, programs=tuple(programs), blocking=blocking)


def without_messages(plan: Plan) -> Plan:
    """The computing alone."""
    programs = (tuple(action for action in program if not action.is_message) for program in plan.programs)
    return replace(plan, programs=tuple(programs), blocking=False)

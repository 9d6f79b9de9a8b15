"""Lowering: adds sends and receives to programs that only compute."""

from __future__ import annotations

from dataclasses import replace

from parallel_dl.schedule.actions import GRADIENTS, Action, Plan


def with_messages(plan: Plan, blocking: bool | None = None) -> Plan:
    """The plan with every send and receive that it needs; a plan that already has any is not changed.

    Receives are placed right before the action that needs them, sends right after the action that produces the data.
    Nothing is sent between two stages of the same rank. `blocking`: see `Plan`; None does not change it.
    """
    if blocking is None:
        blocking = plan.blocking
    if plan.has_messages:
        return replace(plan, blocking=blocking)
    programs = []
    for rank, program in enumerate(plan.programs):
        lowered: list[Action] = []
        for action in program:
            before, after = (
                other in plan.owners and rank not in plan.owners[other]
                for other in (action.stage - 1, action.stage + 1)
            )
            if action.kind == "F":
                around = [("RF", before)], [("SF", after)]
            elif action.kind in GRADIENTS:
                around = [("RB", after)], [("SB", before)]
            else:
                around = [], []
            received, sent = ([action._replace(kind=kind) for kind, travels in side if travels] for side in around)
            lowered += [*received, action, *sent]
        programs.append(tuple(lowered))
    return replace(plan, programs=tuple(programs), blocking=blocking)


def without_messages(plan: Plan) -> Plan:
    """The plan without its sends and receives."""
    programs = (tuple(action for action in program if not action.is_message) for program in plan.programs)
    return replace(plan, programs=tuple(programs), blocking=False)

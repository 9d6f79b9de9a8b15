"""The executor: runs one rank's program by calling a stage object for each action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parallel_dl.schedule.actions import ALL, RECEIVES, Action, PlanError, Program


class StageObject:
    """Base of stage objects: `AR` and `U` call functions set by the code that composes the step.

    A stage object carries out actions for one rank. It has the methods that its programs need (`METHODS`), each called
    with (stage, microbatch). The stage is one of that rank's own, or `ALL` of them; the microbatch is `ALL` for the
    whole batch. A sub-batch or unit named by the action is passed by keyword, as `sub_batch` or `unit`.
    """

    sum_gradients: Callable[[], object]
    update_weights: Callable[[], object]

    def expect(self, receives: Sequence[Action]) -> None:
        """Called before the first action with all receives of the program, in order, to post them early."""

    def all_reduce(self, stage: int, microbatch: int) -> None:
        """AR: when it returns, the gradients are summed over the ranks that have these weights."""
        self.sum_gradients()

    def update(self, stage: int, microbatch: int) -> None:
        """U: an update of the weights."""
        self.update_weights()

    def finish(self) -> None:
        """Called after the last action: waits for everything still in progress. Not called after an exception."""


METHODS = {
    "F": "forward",
    "B": "backward",
    "I": "backward_input",
    "W": "backward_weight",
    "R": "recompute",
    "U": "update",
    "SF": "send_activation",
    "RF": "receive_activation",
    "SB": "send_gradient",
    "RB": "receive_gradient",
    "AR": "all_reduce",
    "RS": "reduce_scatter",
    "AG": "all_gather",
}
"""kind of action -> the method of the stage object that does it"""


def execute(program: Program, stages: Any) -> None:
    """Carries out one rank's program, in its order, with the methods of a stage object.

    PlanError before the first action for an unknown kind, or for one that the object has no method for.
    """
    methods: dict[str, Callable[..., None]] = {}
    for action in program:
        if action.kind not in methods:
            methods[action.kind] = _method(stages, action)
    stages.expect([action for action in program if action.kind in RECEIVES])
    for stage, kind, microbatch, sub_batch, unit in program:
        if sub_batch == unit == ALL:
            methods[kind](stage, microbatch)
        else:
            named = {"sub_batch": sub_batch, "unit": unit}
            methods[kind](stage, microbatch, **{name: number for name, number in named.items() if number != ALL})
    stages.finish()


def _method(stages: Any, action: Action) -> Callable[..., None]:
    if action.kind not in METHODS:
        raise PlanError(f"{action}: unknown kind {action.kind!r}; expected one of {', '.join(METHODS)}")
    method: Callable[..., None] | None = getattr(stages, METHODS[action.kind], None)
    if method is None:
        raise PlanError(f"{action}: {type(stages).__name__} has no {METHODS[action.kind]}")
    return method

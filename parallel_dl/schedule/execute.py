"""The executor: goes through one rank's program and has a stage object do each action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from parallel_dl.schedule.actions import ALL, RECEIVES, Action, PlanError, Program


class Runner(Protocol):
    """Does what the actions say, for one rank: those of its methods that its programs need.

    `stage` is always one of that rank's own, or `ALL` of them; `microbatch` is `ALL` for the whole batch. A sub-batch
    or unit that the action names is passed by keyword, as `sub_batch` and `unit`.
    """

    def expect(self, receives: Sequence[Action]) -> None:
        """Before the first action: all receives of the program in its order, so that they can be posted early."""

    def forward(self, stage: int, microbatch: int) -> None:
        """F: the forward pass."""

    def backward(self, stage: int, microbatch: int) -> None:
        """B: the gradients of input and weights."""

    def backward_input(self, stage: int, microbatch: int) -> None:
        """I: the gradient of the input."""

    def backward_weight(self, stage: int, microbatch: int) -> None:
        """W: the gradient of the weights."""

    def recompute(self, stage: int, microbatch: int) -> None:
        """R: the forward pass once more, for its backward."""

    def update(self, stage: int, microbatch: int) -> None:
        """U: an update of the weights."""

    def send_activation(self, stage: int, microbatch: int) -> None:
        """SF: `stage` sends its output to stage + 1."""

    def receive_activation(self, stage: int, microbatch: int) -> None:
        """RF: `stage` receives its input from stage - 1."""

    def send_gradient(self, stage: int, microbatch: int) -> None:
        """SB: `stage` sends the gradient of its input to stage - 1."""

    def receive_gradient(self, stage: int, microbatch: int) -> None:
        """RB: `stage` receives the gradient of its output from stage + 1."""

    def all_reduce(self, stage: int, microbatch: int) -> None:
        """AR: the gradients are summed over the ranks that have these weights, when it returns."""

    def reduce_scatter(self, stage: int, microbatch: int) -> None:
        """RS: the gradients are summed, and each rank has its shard of the sums."""

    def all_gather(self, stage: int, microbatch: int) -> None:
        """AG: each rank has all weights again."""

    def finish(self) -> None:
        """After the last action: waits for whatever is still under way. Not called after an exception."""


class Stages:
    """What stage objects have in common: `AR` and `U` call functions that whoever composes the step sets."""

    sum_gradients: Callable[[], None]
    update_weights: Callable[[], None]

    def expect(self, receives: Sequence[Action]) -> None:
        """Nothing is posted early."""

    def all_reduce(self, stage: int, microbatch: int) -> None:
        """AR."""
        self.sum_gradients()

    def update(self, stage: int, microbatch: int) -> None:
        """U."""
        self.update_weights()

    def finish(self) -> None:
        """Nothing is under way."""


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
"""kind of action -> the method of the runner that does it"""


def execute(program: Program, runner: Any) -> None:
    """Carries out one rank's program, in its order, with the methods of a `Runner`.

    PlanError before the first action for an unknown kind, or for one that the runner has no method for.
    """
    calls = []
    for action in program:
        if action.kind not in METHODS:
            raise PlanError(f"{action}: unknown kind {action.kind!r}; valid are {', '.join(METHODS)}")
        method = getattr(runner, METHODS[action.kind], None)
        if method is None:
            raise PlanError(f"{action}: {type(runner).__name__} has no {METHODS[action.kind]}")
        named = {name: number for name in ("sub_batch", "unit") if (number := getattr(action, name)) != ALL}
        calls.append((method, action.stage, action.microbatch, named))
    runner.expect([action for action in program if action.kind in RECEIVES])
    for method, stage, microbatch, named in calls:
        method(stage, microbatch, **named)
    runner.finish()

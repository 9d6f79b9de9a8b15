"""The executor: goes through one rank's program and has a runner do each action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from parallel_dl.schedule.actions import RECEIVES, Action, PlanError, Program


class Runner(Protocol):
    """Does what the actions say, for one rank. `stage` is always one of that rank's own."""

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

    def update(self, stage: int, microbatch: int) -> None:
        """U: an update of the weights by the gradient of this microbatch."""

    def send_activation(self, stage: int, microbatch: int) -> None:
        """SF: `stage` sends its output to stage + 1."""

    def receive_activation(self, stage: int, microbatch: int) -> None:
        """RF: `stage` receives its input from stage - 1."""

    def send_gradient(self, stage: int, microbatch: int) -> None:
        """SB: `stage` sends the gradient of its input to stage - 1."""

    def receive_gradient(self, stage: int, microbatch: int) -> None:
        """RB: `stage` receives the gradient of its output from stage + 1."""

    def finish(self) -> None:
        """After the last action: waits for whatever is still under way. Not called after an exception."""


METHODS = {
    "F": "forward",
    "B": "backward",
    "I": "backward_input",
    "W": "backward_weight",
    "U": "update",
    "SF": "send_activation",
    "RF": "receive_activation",
    "SB": "send_gradient",
    "RB": "receive_gradient",
}
"""kind of action -> the method of the runner that does it"""


def execute(program: Program, runner: Runner) -> None:
    """Carries out one rank's program, in its order; PlanError before the first action if there is an unknown kind."""
    for action in program:
        if action.kind not in METHODS:
            raise PlanError(f"{action}: unknown kind {action.kind!r}; valid are {', '.join(METHODS)}")
    runner.expect([action for action in program if action.kind in RECEIVES])
    for stage, kind, microbatch in program:
        getattr(runner, METHODS[kind])(stage, microbatch)
    runner.finish()

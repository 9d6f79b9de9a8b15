"""Bugs of pipelines: what stages send, which weights they compute with, gradients that are put off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, replaced
from parallel_dl.equivalence.mutants.networks import PIPE, ZERO_BUBBLE
from parallel_dl.pipeline_parallel.messages import Messages
from parallel_dl.pipeline_parallel.runner import StageRunner


def _sent(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """What stages send forward (SF) or backward (SB) is changed."""

    def make(before: Any) -> Any:
        def wrong(messages: Messages, action: Any, array: np.ndarray) -> None:
            before(messages, action, change(array) if action.kind == kind else array)

        return wrong

    return lambda stack: replaced(stack, Messages, "send", make)


def _stale_weights(stack: ExitStack) -> None:
    """From the second step on the first stage's forward has the weights before the last update."""

    def make(before: Any) -> Any:
        def wrong(runner: StageRunner, stage: int, microbatch: int) -> None:
            if stage or runner.comm.size == 1:
                before(runner, stage, microbatch)
                return
            weights = [parameter.data.copy() for parameter in runner.parameters]
            history = runner.__dict__.setdefault("_versions", [])
            if microbatch == 0:
                history.append(weights)
            for parameter, old in zip(runner.parameters, history[max(0, len(history) - 2)]):
                parameter.data[...] = old
            before(runner, stage, microbatch)
            for parameter, new in zip(runner.parameters, weights):
                parameter.data[...] = new

        return wrong

    replaced(stack, StageRunner, "forward", make)


def _weights_never_deferred_back(stack: ExitStack) -> None:
    """The weight gradients of the last microbatch, put off, are forgotten."""

    def make(before: Any) -> Any:
        def wrong(runner: StageRunner, stage: int, microbatch: int) -> None:
            if microbatch < len(runner.microbatches) - 1 or runner.comm.size == 1:
                before(runner, stage, microbatch)

        return wrong

    replaced(stack, StageRunner, "backward_weight", make)


MUTANTS: tuple[Mutant, ...] = (
    Mutant("stale weights in 1F1B", "fully", PIPE, _stale_weights, ("earlier version",)),
    Mutant("activation of zeros", "fully", PIPE, _sent("SF", np.zeros_like), ("nothing arrived",)),
    Mutant("gradient of a boundary negated", "fully", PIPE, _sent("SB", np.negative), ("wrong sign",)),
    Mutant("samples of a boundary reversed", "fully", PIPE, _sent("SF", lambda a: a[::-1].copy()), ("another order",)),
    Mutant("deferred weight gradients forgotten", "fully", ZERO_BUBBLE, _weights_never_deferred_back, ("accumulated",)),
)

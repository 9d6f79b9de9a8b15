"""Bugs of pipelines: first weights, what stages send, which weights they compute with, gradients that are put off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, exchanged, rank_in_job
from parallel_dl.equivalence.mutants.networks import PIPE, ZERO_BUBBLE
from parallel_dl.pipeline_parallel.messages import Messages
from parallel_dl.pipeline_parallel.runner import StageRunner


def _sent(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """What stages send forward (SF) or backward (SB) is changed."""

    def wrong(right: Any, messages: Messages, action: Any, array: np.ndarray) -> None:
        right(messages, action, change(array) if action.kind == kind else array)

    return exchanged(Messages, "send", wrong)


def _seed_by_rank(right: Any, network: nn.Module, seed: int = 0, *arguments: Any, **named: Any) -> nn.Module:
    return right(network, seed + rank_in_job(), *arguments, **named)


def _stale_weights(right: Any, runner: StageRunner, stage: int, microbatch: int) -> None:
    """From the second step on the first stage's forward has the weights before the last update."""
    if stage or runner.comm.size == 1:
        right(runner, stage, microbatch)
        return
    weights = [parameter.data.copy() for parameter in runner.parameters]
    history = runner.__dict__.setdefault("_versions", [])
    if microbatch == 0:
        history.append(weights)
    for parameter, old in zip(runner.parameters, history[max(0, len(history) - 2)]):
        parameter.data[...] = old
    right(runner, stage, microbatch)
    for parameter, new in zip(runner.parameters, weights):
        parameter.data[...] = new


def _deferred_forgotten(right: Any, runner: StageRunner, stage: int, microbatch: int) -> None:
    """The weight gradients of the last microbatch, put off, never come."""
    if microbatch < len(runner.microbatches) - 1 or runner.comm.size == 1:
        right(runner, stage, microbatch)


def _mutant(name: str, plant: Plant, says: str) -> Mutant:
    return Mutant(name, "fully", PIPE, plant, (says,))


MUTANTS: tuple[Mutant, ...] = (
    _mutant("another seed on one rank", exchanged(nn.Module, "initialize", _seed_by_rank), "seed"),
    _mutant("stale weights in 1F1B", exchanged(StageRunner, "forward", _stale_weights), "earlier version"),
    _mutant("activation of zeros", _sent("SF", np.zeros_like), "nothing arrived"),
    _mutant("gradient of a boundary negated", _sent("SB", np.negative), "wrong sign"),
    _mutant("samples of a boundary reversed", _sent("SF", lambda a: a[::-1].copy()), "another order"),
    Mutant(
        "deferred weight gradients forgotten",
        "fully",
        ZERO_BUBBLE,
        exchanged(StageRunner, "backward_weight", _deferred_forgotten),
        ("accumulated",),
    ),
)

"""Forward and backward on one rank: what the stage objects of all engines share, and a whole network as one stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from parallel_dl.autograd import Deferred, Tensor
from parallel_dl.datasets import Share
from parallel_dl.nn import Module
from parallel_dl.schedule import Program, StageObject, execute


class Passed(NamedTuple):
    """A forward pass whose backward has not run yet."""

    result: Any
    """its output, or with the loss a scalar"""
    since: Tensor | None = None
    """made before it: its input, if that has a gradient"""
    version: int = 0
    """of the weights"""

    def backward(self, gradient: Any = None, defer: Iterable[Tensor] = ()) -> Deferred:
        """As `autograd.backward`, of what this pass has recorded."""
        return self.result.backward(gradient, defer, self.since)

    @property
    def input_gradient(self) -> np.ndarray:
        """After backward, that of the input: zeros where nothing after it depends on it."""
        assert self.since is not None
        return np.zeros_like(self.since.data) if self.since.grad is None else self.since.grad


class NetworkStage(StageObject):
    """What every rank's stage object has: `network`, and the microbatches of a step.

    `loss` is (outputs, targets, total) -> a scalar. `before_entry` is called with each microbatch before it enters the
    network. A stage object whose backward passes come in the order of the microbatches runs them `accumulating`: inside
    `accumulate()`, but for the last one.
    """

    def __init__(self, network: Module, loss: Callable[..., Any]) -> None:
        self.network, self.loss = network, loss
        self.accumulate: Callable[[], AbstractContextManager[None]] = nullcontext
        self.before_entry: Callable[[Share], object] = lambda microbatch: None

    def run(self, program: Program, microbatches: Sequence[Share], updates: Sequence[int]) -> list[float]:
        """Carries out this rank's program for its shares of the microbatches; their losses, as far as it has them.

        `updates` has the number of updates before each microbatch. Gradients are added to those there are.
        """
        self.begin(microbatches, updates)
        execute(program, self)
        return self.losses

    def begin(self, microbatches: Sequence[Share], updates: Sequence[int]) -> None:
        """The microbatches of the next step, and the number of updates before each of them."""
        self.microbatches, self.updates = microbatches, updates
        self.losses = [0.0] * len(microbatches)
        self._passed: dict[Any, Passed] = {}

    def enter(self, microbatch: int, is_first: bool = True) -> Share:
        """A microbatch before its forward pass through a stage; `is_first`: through the network's first one."""
        part = self.microbatches[microbatch]
        if is_first:
            self.before_entry(part)
        self.network.set_position(self.updates[microbatch], part.first)
        return part

    def accumulating(self, microbatch: int) -> AbstractContextManager[None]:
        """Around the backward pass of a microbatch: `accumulate()` but for the last one."""
        return nullcontext() if microbatch == len(self.microbatches) - 1 else self.accumulate()


class WholeNetwork(NetworkStage):
    """The whole `network`, possibly with split layers, and the loss."""

    def forward(self, stage: int, microbatch: int) -> None:
        """Runs the network, with the loss."""
        part = self.enter(microbatch)
        self._passed[microbatch] = Passed(self.loss(self.network(part.x), part.y, part.size))

    def backward(self, stage: int, microbatch: int) -> None:
        """Adds the gradients of the weights to those there are."""
        passed = self._passed.pop(microbatch)
        with self.accumulating(microbatch):
            passed.backward()
        self.losses[microbatch] = passed.result.item()

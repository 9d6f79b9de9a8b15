"""A network as a single stage: what the executor calls in serial, accumulated and data parallel steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from parallel_dl.datasets import Share
from parallel_dl.nn import Module
from parallel_dl.schedule import StageObject


class WholeNetwork(StageObject):
    """The whole `network`, possibly with split layers, and the loss (logits, targets, total) -> a scalar.

    Every backward but that of the last microbatch runs inside `accumulate()`. `before_entry`, if set, is called with
    each microbatch before its forward pass.
    """

    def __init__(
        self,
        network: Module,
        loss: Callable[..., Any],
        accumulate: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.network, self.loss, self.accumulate = network, loss, accumulate
        self.before_entry: Callable[[Share], None] | None = None

    def begin(self, microbatches: Sequence[Share], updates: Sequence[int]) -> None:
        """The microbatches of the next step, and the number of updates before each of them."""
        self.microbatches, self.updates = microbatches, updates
        self.losses = [0.0] * len(microbatches)
        self._results: dict[int, Any] = {}

    def forward(self, stage: int, microbatch: int) -> None:
        """Runs the network, with the loss."""
        part = self.microbatches[microbatch]
        if self.before_entry is not None:
            self.before_entry(part)
        self.network.set_position(self.updates[microbatch], part.first)
        self._results[microbatch] = self.loss(self.network(part.x), part.y, part.size)

    def backward(self, stage: int, microbatch: int) -> None:
        """Adds the gradients of the weights to those there are."""
        result = self._results.pop(microbatch)
        if microbatch < len(self.microbatches) - 1:
            with self.accumulate():
                result.backward()
        else:
            result.backward()
        self.losses[microbatch] = result.item()

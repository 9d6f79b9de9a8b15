"""One rank of a pipeline: what the executor of a schedule calls, action by action.

A boundary between stages cuts the tape. What arrives from the previous stage is a fresh leaf, and once backward has
run, its gradient is what that stage waits for: the schedule decides when gradients travel, not the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parallel_dl.autograd import Deferred, Tensor
from parallel_dl.cost.stages import Shape, Stages
from parallel_dl.datasets import Share
from parallel_dl.mpi import Communicator
from parallel_dl.nn import Module, Parameter
from parallel_dl.pipeline_parallel.messages import Messages
from parallel_dl.pipeline_parallel.stash import WeightStash
from parallel_dl.schedule import ALL, Action
from parallel_dl.stage import NetworkStage, Passed

Array = np.ndarray
Place = tuple[int, int]
"""boundary, microbatch: boundary b is in front of stage b"""


class StageRunner(NetworkStage):
    """Runs this rank's stages, one batch at a time: call `begin`, then a program's actions.

    `rank_of` maps stages to ranks. `shape_at(s, n)` is the shape of what this rank's stage s takes of n samples, if
    not that of the whole network, `expect_samples(n)` is told how many samples the next forward pass has, and `prepare`
    is applied to what a stage gives.

    When an asynchronous schedule updates the weights between microbatches, those in use in a forward pass are kept
    until its backward.
    """

    def __init__(
        self,
        network: Module,
        stages: Stages,
        rank_of: dict[int, int],
        comm: Communicator,
        loss: Callable[[Any, Any, float], Tensor],
        dtype: Any,
        shape_at: Callable[[int, int], Shape] | None = None,
        expect_samples: Callable[[int], None] | None = None,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(network, loss)
        self._expect_samples = expect_samples
        self.prepare = prepare
        self.stages, self.rank_of, self.comm = stages, rank_of, comm
        whole = lambda boundary, samples: (samples, *stages.inputs[boundary])  # noqa: E731
        self.messages = Messages(comm, rank_of, shape_at or whole, dtype)
        self.own = [stage for stage, rank in sorted(rank_of.items()) if rank == comm.rank]
        self.last = len(stages) - 1
        self.peak_live = 0
        self._weights = {
            stage: [p for name in stages.layers(stage) for p in network._modules[name].parameters()]
            for stage in self.own
        }
        self.stash = WeightStash(self.parameters)

    @property
    def parameters(self) -> list[Parameter]:
        """The weights of this rank's stages."""
        return [parameter for stage in self.own for parameter in self._weights[stage]]

    # -- a batch ---------------------------------------------------------------------------------------------------
    def begin(self, microbatches: Sequence[Share], updates: Sequence[int]) -> None:
        """The microbatches of the next step, and the number of updates before each of them."""
        super().begin(microbatches, updates)
        self.peak_live = 0
        self.messages.begin([len(part.x) for part in microbatches])
        self._activations: dict[Place, Array] = {}
        self._gradients: dict[Place, Array] = {}  # of them
        self._deferred: dict[Place, Deferred] = {}

    def expect(self, receives: Sequence[Action]) -> None:
        """The receives of the program, in order."""
        self.messages.expect(receives)

    def finish(self) -> None:
        """Waits until everything has been sent."""
        self.messages.finish()

    # -- what the executor calls -----------------------------------------------------------------------------------
    def receive_activation(self, stage: int, microbatch: int) -> None:
        """Waits for the output of the previous stage."""
        self._activations[stage, microbatch] = self.messages.receive(Action(stage, "RF", microbatch))

    def forward(self, stage: int, microbatch: int) -> None:
        """Runs the stage's layers, on the last stage with the loss."""
        part = self.enter(microbatch, stage == 0)
        if self._expect_samples is not None:
            self._expect_samples(len(part.x))
        x: Any = part.x
        if stage:
            x = Tensor(self._activations.pop((stage, microbatch)), requires_grad=True)
        marker = x if stage else Tensor(np.empty(0, self.messages.dtype))
        result = x
        for layer in self.stages.layers(stage):
            result = self.network.call(layer, result)
        if self.prepare is not None:
            result = self.prepare(result)
        if stage == self.last:
            result = self.loss(result, part.y, part.size)
            self.losses[microbatch] = result.item()
        else:
            self._activations[stage + 1, microbatch] = result.data if isinstance(result, Tensor) else result
        self._passed[stage, microbatch] = Passed(result, marker, self.stash.version)
        self.peak_live = max(self.peak_live, len(self._passed) + len(self._deferred))

    def send_activation(self, stage: int, microbatch: int) -> None:
        """Starts to send the output of forward."""
        self.messages.send(Action(stage, "SF", microbatch), self._activations.pop((stage + 1, microbatch)))

    def receive_gradient(self, stage: int, microbatch: int) -> None:
        """Waits for the gradient of the stage's output."""
        self._gradients[stage + 1, microbatch] = self.messages.receive(Action(stage, "RB", microbatch))

    def backward(self, stage: int, microbatch: int) -> None:
        """The gradients of the input and of the weights."""
        self._go_back(stage, microbatch, ())

    def backward_input(self, stage: int, microbatch: int) -> None:
        """The gradient of the input; those of the weights are deferred to `backward_weight`."""
        self._deferred[stage, microbatch] = self._go_back(stage, microbatch, self._weights[stage])

    def backward_weight(self, stage: int, microbatch: int) -> None:
        """The gradients of the weights."""
        self._deferred.pop((stage, microbatch)).run()

    def _go_back(self, stage: int, microbatch: int, defer: Sequence[Tensor]) -> Deferred:
        passed = self._passed.pop((stage, microbatch))
        gradient = None if stage == self.last else self._gradients.pop((stage + 1, microbatch))
        deferred = Deferred()
        if isinstance(passed.result, Tensor) and passed.result.requires_grad:
            with self.stash.using(passed.version):
                deferred = passed.backward(gradient, defer)
        if stage:
            self._gradients[stage, microbatch] = passed.input_gradient
        return deferred

    def send_gradient(self, stage: int, microbatch: int) -> None:
        """Starts to send the gradient of the stage's input."""
        self.messages.send(Action(stage, "SB", microbatch), self._gradients.pop((stage, microbatch)))

    def update(self, stage: int, microbatch: int) -> None:
        """Updates the weights; versions still in use by other microbatches are kept."""
        if microbatch != ALL:
            self.stash.advance({passed.version for passed in self._passed.values()})
        self.update_weights()

    # -- without gradients -----------------------------------------------------------------------------------------
    def evaluate(self, x: Array) -> Array | None:
        """The network's output (n, ...) for samples x, on the last stage's rank; None on the others. All together."""
        found: Array | None = None
        if self._expect_samples is not None:
            self._expect_samples(len(x))
        for stage in range(len(self.stages)):
            if stage not in self.own:
                continue
            if stage == 0:
                given: Any = x
            elif self.rank_of[stage - 1] == self.comm.rank:
                given = Tensor(found)
            else:
                shape = self.messages.shape_at(stage, len(x))
                given = Tensor(self.comm.receive(self.rank_of[stage - 1], shape, self.messages.dtype))
            for layer in self.stages.layers(stage):
                given = self.network.call(layer, given)
            found = given.data if isinstance(given, Tensor) else given
            if stage < self.last and self.rank_of[stage + 1] != self.comm.rank:
                assert found is not None
                self.messages.require_fits(found, stage + 1, len(x))
                self.comm.send(np.ascontiguousarray(found), self.rank_of[stage + 1])
                found = None
        return found if self.last in self.own else None

"""One rank of a pipeline: what the executor of a schedule asks for, action by action.

A boundary between stages cuts the tape. What arrives from the stage before is a fresh leaf, and its gradient, once
backward has run, is what that stage waits for: the schedule decides when gradients travel, not the tape.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from parallel_dl.autograd import Deferred, Tensor, backward
from parallel_dl.cost.stages import Shape, Stages
from parallel_dl.datasets import Share
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator, Pending
from parallel_dl.nn import FlatParameters, Module, Parameter, flatten
from parallel_dl.schedule import ALL, Action
from parallel_dl.schedule import Stages as StageObject

Array = np.ndarray
_AHEAD = 2  # receives that are posted before they are needed: more would hold the memory that 1F1B saves
_ORDERS = 1 << 12  # added to a tag for the message that tells the order of memory
_ONE_SAMPLE = 1 << 11  # the same, of microbatches of one sample, whose first axis says nothing


class _Passed(NamedTuple):
    """A forward pass whose backward has not run yet."""

    marker: Tensor  # made before the forward pass: its input, if that has a gradient
    result: Any  # the output, or on the last stage the loss
    version: int  # of the weights


class StageRunner(StageObject):
    """Runs the stages that this rank of `comm` has, for one batch at a time: `begin`, then a program's actions.

    `rank_of` maps stages to ranks. `loss` is (output, targets, total) -> a scalar. Everything a stage sends has a shape
    and a dtype that both sides know; in which order the axes lie in memory is told once, with the first message: sums
    then add up in the order of a serial run, to the same bits.

    `boundaries[s]` is the shape of one sample that this rank's stage s takes, if not that of the whole network, and
    `prepare` is applied to what a stage gives. `before_entry`, if set, is called with each microbatch before it enters
    stage 0.

    When an asynchronous schedule updates the weights between microbatches, those in use in a forward pass are kept
    until its backward: weight stashing (Narayanan et al. 2019, PipeDream, SOSP '19, section 3.3).
    """

    def __init__(
        self,
        network: Module,
        stages: Stages,
        rank_of: dict[int, int],
        comm: Communicator,
        loss: Callable[[Any, Any, float], Tensor],
        dtype: Any,
        boundaries: Sequence[Shape] | None = None,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        self.boundaries = stages.inputs if boundaries is None else boundaries
        self.prepare = prepare
        self.before_entry: Callable[[Share], None] | None = None
        self.network, self.stages, self.rank_of, self.comm = network, stages, rank_of, comm
        self.loss, self.dtype = loss, np.dtype(dtype)
        self._orders: dict[tuple[int, int], tuple[int, ...]] = {}  # (tag, rank) -> axes, outermost first
        self.version = 0  # of the weights: the updates made between microbatches
        self.own = [stage for stage, rank in sorted(rank_of.items()) if rank == comm.rank]
        self.last = len(stages) - 1
        self.losses: list[float] = []
        self.peak_live = 0
        self._weights = {
            stage: [p for name in stages.layers(stage) for p in network._modules[name].parameters()]
            for stage in self.own
        }
        # what is sent, as the ledger enters it
        self._out = {stage: comm.labelled(f"stage {stage}", "forward") for stage in self.own}
        self._back = {stage: comm.labelled(f"stage {stage}", "backward") for stage in self.own}

    @property
    def parameters(self) -> list[Parameter]:
        """The weights of this rank's stages."""
        return [parameter for stage in self.own for parameter in self._weights[stage]]

    # -- a batch ---------------------------------------------------------------------------------------------------
    def begin(self, microbatches: Sequence[Share], updates: Sequence[int]) -> None:
        """The microbatches of the next step, and the number of updates before each of them."""
        self.microbatches, self.updates = microbatches, updates
        self.losses = [0.0] * len(microbatches)
        self.peak_live = 0
        self._inputs: dict[tuple[int, int], Array] = {}
        self._passed: dict[tuple[int, int], _Passed] = {}
        self._outgoing: dict[tuple[int, int], Array] = {}  # activations
        self._gradients: dict[tuple[int, int], Array] = {}  # that arrived, by the stage whose output they are of
        self._returning: dict[tuple[int, int], Array] = {}  # of inputs, to the stage before
        self._deferred: dict[tuple[int, int], Deferred] = {}
        self._sent: list[Pending] = []
        self._due: deque[Action] = deque()
        self._posted: dict[Action, Pending] = {}
        self._kept: dict[int, list[Array]] = {}  # version -> weights that a backward will need

    def expect(self, receives: Sequence[Action]) -> None:
        """The receives of the program, in order."""
        self._due = deque(receives)
        self._post()

    def _post(self) -> None:
        while self._due and len(self._posted) < _AHEAD:
            action = self._due.popleft()
            stage, source = action.stage, self.rank_of[action.partner.stage]
            boundary = stage if action.kind == "RF" else stage + 1
            shape = (len(self.microbatches[action.microbatch].x), *self.boundaries[boundary])
            buffer = np.empty(math.prod(shape), self.dtype)
            self._posted[action] = self.comm.ireceive(buffer, source, _tag(action.partner))

    def _receive(self, action: Action, boundary: int) -> Array:
        flat = self._posted.pop(action).wait()
        self._post()
        shape = (len(self.microbatches[action.microbatch].x), *self.boundaries[boundary])
        tag, source = _tag(action.partner), self.rank_of[action.partner.stage]
        key = (_order_tag(tag, shape[0]), source)
        if key not in self._orders:
            self._orders[key] = tuple(self.comm.receive(source, (len(shape),), np.int64, key[0]).tolist())
        order = self._orders[key]
        return flat.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def _send(self, action: Action, array: Array) -> None:
        """Begins to send (samples, ...) in the order of memory that the first such array had."""
        self._require_fits(array, action.stage + (action.kind == "SF"))
        tag, destination = _tag(action), self.rank_of[action.partner.stage]
        comm = (self._out if action.kind == "SF" else self._back)[action.stage]
        key = (_order_tag(tag, len(array)), destination)
        if key not in self._orders:
            order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis] if array.shape[axis] > 1 else 0)
            self._sent.append(comm.isend(np.array(order, np.int64), destination, key[0]))
            self._orders[key] = tuple(order)
        self._sent.append(comm.isend(array.transpose(self._orders[key]), destination, tag))

    def _require_fits(self, array: Array, boundary: int) -> None:
        """Raises InputError for an activation, or its gradient, that the other side does not expect."""
        if array.dtype != self.dtype:
            raise InputError(
                f"stage {boundary - 1} gives {array.dtype}, but the network is {self.dtype}: "
                f"convert the samples to {self.dtype}"
            )
        if array.shape[1:] != tuple(self.boundaries[boundary]):
            raise InputError(
                f"stage {boundary - 1} gives samples of shape {array.shape[1:]}, but stage {boundary} takes "
                f"{tuple(self.boundaries[boundary])}: the samples are not of input_shape"
            )

    # -- what the executor calls -----------------------------------------------------------------------------------
    def receive_activation(self, stage: int, microbatch: int) -> None:
        """Waits for what the stage before has made."""
        self._inputs[stage, microbatch] = self._receive(Action(stage, "RF", microbatch), stage)

    def forward(self, stage: int, microbatch: int) -> None:
        """Runs the stage's layers, on the last stage with the loss."""
        part = self.microbatches[microbatch]
        if stage == 0 and self.before_entry is not None:
            self.before_entry(part)
        self.network.set_position(self.updates[microbatch], part.first)
        x: Any = part.x
        if stage:
            x = Tensor(self._inputs.pop((stage, microbatch)), requires_grad=True)
        marker = x if stage else Tensor(np.empty(0, self.dtype))
        result = x
        for layer in self.stages.layers(stage):
            result = self.network.call(layer, result)
        if self.prepare is not None:
            result = self.prepare(result)
        if stage == self.last:
            result = self.loss(result, part.y, part.size)
            self.losses[microbatch] = result.item()
        else:
            data = result.data if isinstance(result, Tensor) else result
            neighbour = self.rank_of[stage + 1] == self.comm.rank
            (self._inputs if neighbour else self._outgoing)[stage + neighbour, microbatch] = data
        self._passed[stage, microbatch] = _Passed(marker, result, self.version)
        self.peak_live = max(self.peak_live, len(self._passed) + len(self._deferred))

    def send_activation(self, stage: int, microbatch: int) -> None:
        """Begins to send what forward has made."""
        self._send(Action(stage, "SF", microbatch), self._outgoing.pop((stage, microbatch)))

    def receive_gradient(self, stage: int, microbatch: int) -> None:
        """Waits for the gradient of the stage's output."""
        self._gradients[stage, microbatch] = self._receive(Action(stage, "RB", microbatch), stage + 1)

    def backward(self, stage: int, microbatch: int) -> None:
        """The gradients of the input and of the weights."""
        self._go_back(stage, microbatch, ())

    def backward_input(self, stage: int, microbatch: int) -> None:
        """The gradient of the input; those of the weights are put off until `backward_weight`."""
        self._deferred[stage, microbatch] = self._go_back(stage, microbatch, self._weights[stage])

    def backward_weight(self, stage: int, microbatch: int) -> None:
        """The gradients of the weights."""
        self._deferred.pop((stage, microbatch)).run()

    def _go_back(self, stage: int, microbatch: int, defer: Sequence[Tensor]) -> Deferred:
        passed = self._passed.pop((stage, microbatch))
        gradient = None if stage == self.last else self._gradients.pop((stage, microbatch))
        deferred = Deferred()
        if isinstance(passed.result, Tensor) and passed.result.requires_grad:
            with self._weights_of(passed.version):
                deferred = backward(passed.result, gradient, defer, since=passed.marker)
        if stage:
            returned = passed.marker.grad
            if returned is None:  # nothing after it depends on it
                returned = np.zeros_like(passed.marker.data)
            neighbour = self.rank_of[stage - 1] == self.comm.rank
            (self._gradients if neighbour else self._returning)[stage - neighbour, microbatch] = returned
        return deferred

    def send_gradient(self, stage: int, microbatch: int) -> None:
        """Begins to send the gradient of the stage's input."""
        self._send(Action(stage, "SB", microbatch), self._returning.pop((stage, microbatch)))

    def update(self, stage: int, microbatch: int) -> None:
        """Updates the weights; after one microbatch those in use by others are kept for them."""
        if microbatch == ALL:
            self.update_weights()
            return
        in_use = {passed.version for passed in self._passed.values()}
        if self.version in in_use:
            self._kept[self.version] = [group.values.copy() for group in self._groups]
        self._kept = {version: values for version, values in self._kept.items() if version in in_use}
        self.update_weights()
        self.version += 1

    @contextmanager
    def _weights_of(self, version: int) -> Iterator[None]:
        """Inside, the weights are those of that version: the tape holds on to their memory."""
        if version == self.version:
            yield
            return
        now = [group.values.copy() for group in self._groups]
        self._set_weights(self._kept[version])
        try:
            yield
        finally:
            self._set_weights(now)

    def _set_weights(self, values: Sequence[Array]) -> None:
        for group, own in zip(self._groups, values):
            group.values[...] = own

    @property
    def _groups(self) -> list[FlatParameters]:
        return flatten(self.parameters)

    def finish(self) -> None:
        """Waits until everything is sent."""
        for pending in self._sent:
            pending.wait()
        self._sent = []

    # -- without gradients -----------------------------------------------------------------------------------------
    def evaluate(self, x: Array) -> Array | None:
        """The network's output (n, ...) for samples x, on the last stage's rank; None on the others. All together."""
        found: Array | None = None
        for stage in range(len(self.stages)):
            if stage not in self.own:
                continue
            if stage == 0:
                given: Any = x
            elif self.rank_of[stage - 1] == self.comm.rank:
                given = Tensor(found)
            else:
                shape = (len(x), *self.boundaries[stage])
                given = Tensor(self.comm.receive(self.rank_of[stage - 1], shape, self.dtype))
            for layer in self.stages.layers(stage):
                given = self.network.call(layer, given)
            found = given.data if isinstance(given, Tensor) else given
            if stage < self.last and self.rank_of[stage + 1] != self.comm.rank:
                assert found is not None
                self._require_fits(found, stage + 1)
                self.comm.send(np.ascontiguousarray(found), self.rank_of[stage + 1])
                found = None
        return found if self.last in self.own else None


def _tag(send: Action) -> int:
    """Messages of one boundary and direction come in order; others must not be taken for them."""
    return 2 * send.stage + (send.kind == "SB")


def _order_tag(tag: int, samples: int) -> int:
    """Of the message that tells the order of memory of so many samples."""
    return _ORDERS + tag + (_ONE_SAMPLE if samples < 2 else 0)

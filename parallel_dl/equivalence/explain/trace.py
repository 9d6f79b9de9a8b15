"""Traces one step: what every layer of a rank gives, and the gradient that comes back to it, by microbatch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from parallel_dl.autograd import Tensor
from parallel_dl.datasets import Batch, Share
from parallel_dl.equivalence.rounding.passing import watched
from parallel_dl.equivalence.runs.record import Experiment, batches, local_gradients, start
from parallel_dl.layout import Layout
from parallel_dl.mesh import Placement
from parallel_dl.mpi import Mesh
from parallel_dl.nn import Module, Sequential
from parallel_dl.nn.shapes import computes_as
from parallel_dl.trainer import Trainer

Array = np.ndarray
Arrays = dict[str, Array]


class At(NamedTuple):
    """A microbatch and a layer; the network's input is in front of the layer ""."""

    microbatch: int
    layer: str


@dataclasses.dataclass
class Trace:
    """What one rank has seen in one step: its pieces, copies."""

    place: dict[str, int]
    """its index along each axis of the mesh"""
    shares: list[tuple[int, int]]
    """by microbatch: first sample of its share in the batch, number of samples"""
    inputs: dict[At, Array] = dataclasses.field(default_factory=dict)
    """the samples that entered"""
    targets: dict[At, Array] = dataclasses.field(default_factory=dict)
    """their targets, where the loss is computed"""
    arrived: dict[At, Array] = dataclasses.field(default_factory=dict)
    """the input of each layer, after the moves that bring it there"""
    outputs: dict[At, Array] = dataclasses.field(default_factory=dict)
    """of each layer, after the moves that belong to it"""
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    """by microbatch, where this rank has it"""
    returned: dict[At, Array] = dataclasses.field(default_factory=dict)
    """the gradient of each layer's output"""
    before: Arrays = dataclasses.field(default_factory=dict)
    """whole weights and buffers before the step, gathered"""
    own_before: Arrays = dataclasses.field(default_factory=dict)
    """what this rank itself has of them: whole, or its piece"""
    gradients: Arrays = dataclasses.field(default_factory=dict)
    """of this rank's weights, summed over the ranks that share the batch"""
    summands: Arrays = dataclasses.field(default_factory=dict)
    """the same before they are summed over the replicas"""
    own: list[Arrays] = dataclasses.field(default_factory=list)
    """serial traces: the gradients of each microbatch by itself"""
    placements: dict[str, Placement] = dataclasses.field(default_factory=dict)
    """of each layer's output over the model axis"""
    pieces: dict[str, Any] = dataclasses.field(default_factory=dict)
    """name of a weight -> which part of it this rank has, as an index"""
    owners: dict[str, int] = dataclasses.field(default_factory=dict)
    """of layers in a branch that one rank of the model axis has: which"""


def trace(
    experiment: Experiment, layout: Layout, mesh: Mesh, step: int, allreduce: str | Mapping[str, Any] = "auto"
) -> Trace:
    """Runs an experiment again, up to this step, and traces it; all ranks of `mesh` together."""
    trainer = start(experiment, layout, mesh, allreduce)
    for number, batch in enumerate(batches(experiment, trainer)):
        if number == step:
            break
        trainer.compute_gradients(batch)
        trainer.update()
    tracer = _Tracer(trainer, batch)
    trainer.compute_gradients(batch)
    found = tracer.finish()
    trainer.free()
    return found


def _own_values(trainer: Trainer) -> Arrays:
    """Name -> a copy of the weights and buffers of this rank."""
    if trainer.pipeline is not None:
        return trainer.pipeline.own_state()
    own = {name: parameter.data.copy() for name, parameter in zip(trainer.names, trainer.parameters)}
    return own | {name: array.copy() for name, array in trainer.network.named_buffers()}


class _Tracer:
    """Hooks on all layers of a trainer, for one batch."""

    def __init__(self, trainer: Trainer, batch: Batch) -> None:
        mesh = trainer.mesh
        place = {"pipe": mesh.pipe.rank, "data": mesh.data.rank, "model": mesh.model.rank}
        self.found = Trace(place, [(part.first, len(part.x)) for part in batch.microbatches])
        self.found.own_before = _own_values(trainer)
        self.found.before = trainer.state_dict()
        self.microbatch = 0
        self.calls: dict[int, int] = {}  # id of a layer -> how often it has run in this microbatch
        self._trainer, self._batch = trainer, batch
        if trainer.parallel is not None:
            self.found.pieces = {name: trainer.parallel.piece(name) for name in trainer.names}
            for traced in trainer.parallel.plan.steps:
                self.found.placements[traced.name] = traced.after
                if traced.owner is not None:
                    self.found.owners[traced.name] = traced.owner
        self._hook_layers(trainer)
        self._follow_microbatches(trainer)
        self._summed: Arrays = {}
        self._is_serial = mesh.world.size == 1 and trainer.pipeline is None
        if self._is_serial:
            self._separate_gradients(trainer)
        self._keep_summands(trainer)

    def _hook_layers(self, trainer: Trainer) -> None:
        places: dict[int, tuple[Module, list[str]]] = {}
        # those after the Flatten of a hybrid get parts of several shares
        traced = trainer.network if trainer.hybrid is None else trainer.hybrid.features
        for name, layer in traced.named_modules():
            if name and not computes_as(layer, Sequential):
                places.setdefault(id(layer), (layer, []))[1].append(name)
        for layer, names in places.values():
            layer.register_forward_pre_hook(self._before(names))
            layer.register_forward_hook(self._hook(names))

    def _before(self, names: list[str]) -> Callable[[Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(layer: Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            at = At(self.microbatch, names[min(self.calls.get(id(layer), 0), len(names) - 1)])
            x = arguments[0]
            self.found.arrived[at] = np.array(x.data if isinstance(x, Tensor) else x)
            return arguments

        return hook

    def _hook(self, names: list[str]) -> Callable[[Module, tuple[Any, ...], Any], Any]:
        def hook(layer: Module, arguments: tuple[Any, ...], result: Any) -> Any:
            call = self.calls.get(id(layer), 0)
            self.calls[id(layer)] = call + 1
            at = At(self.microbatch, names[min(call, len(names) - 1)])
            data = result.data if isinstance(result, Tensor) else result
            self.found.outputs[at] = np.array(data)
            if not isinstance(result, Tensor):
                return result
            return watched(result, seen=lambda g: self.found.returned.__setitem__(at, np.array(g)))

        return hook

    def _follow_microbatches(self, trainer: Trainer) -> None:
        numbers = {id(part): number for number, part in enumerate(self._batch.microbatches)}

        def begin(microbatch: int) -> None:
            self.microbatch = microbatch
            self.calls = {}

        if trainer.pipeline is None:
            enter, loss = trainer.stage.before_entry, trainer.loss

            def next_part(part: Share) -> None:
                begin(numbers[id(part)])
                self.found.inputs[At(self.microbatch, "")] = np.array(part.x)
                self.found.targets[At(self.microbatch, "")] = np.array(part.y)
                enter(part)

            def next_loss(*arguments: Any) -> Any:
                value = loss(*arguments)
                self.found.losses[self.microbatch] = value.item()
                return value

            trainer.stage.before_entry, trainer.loss = next_part, next_loss
            return
        runner = trainer.pipeline.runner
        forward = runner.forward

        def next_forward(stage: int, microbatch: int) -> None:
            begin(microbatch)
            if stage == 0:
                self.found.inputs[At(microbatch, "")] = np.array(runner.microbatches[microbatch].x)
            forward(stage, microbatch)
            if stage == runner.last:
                self.found.targets[At(microbatch, "")] = np.array(runner.microbatches[microbatch].y)
                self.found.losses[microbatch] = runner.losses[microbatch]

        runner.forward = next_forward  # type: ignore[method-assign]

    def _keep_summands(self, trainer: Trainer) -> None:
        sum_gradients = trainer.stage.sum_gradients

        def keep_and_sum() -> None:
            self.found.summands = local_gradients(trainer)
            sum_gradients()

        trainer.stage.sum_gradients = keep_and_sum

    def _separate_gradients(self, trainer: Trainer) -> None:
        """A serial run's gradients of one microbatch after the other: what the sum so far has grown by."""
        enter = trainer.stage.before_entry

        def after_previous(part: Share) -> None:
            if part is not self._batch.microbatches[0]:
                self._end_microbatch()
            enter(part)

        trainer.stage.before_entry = after_previous

    def _end_microbatch(self) -> None:
        now = local_gradients(self._trainer)
        zeros = {name: np.zeros_like(array) for name, array in now.items()}
        self.found.own.append({name: array - self._summed.get(name, zeros[name]) for name, array in now.items()})
        self._summed = now

    def finish(self) -> Trace:
        """What was found, after the step."""
        if self._is_serial:
            self._end_microbatch()
        self.found.gradients = local_gradients(self._trainer)
        return self.found

"""Engines: one training step on one rank. A layout makes an engine; the trainer calls it without knowing its kind.

WholeEngine      every rank of a replica has all layers, or its part of each: serial, data and model parallel
PipelineEngine   a rank has some of the layers
HybridEngine     "One weird trick": data parallel layers, then split ones, on the same ranks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from parallel_dl.cost.stages import cut_stages
from parallel_dl.data_parallel import GradientAllReduce, require_equal_replicas
from parallel_dl.errors import InputError
from parallel_dl.hybrid import OneWeirdTrick
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import ModelParallel, parallelize, require_serial
from parallel_dl.mpi import Communicator, Mesh, one_blas_thread
from parallel_dl.nn import Module, Parameter
from parallel_dl.optim import Optimizer
from parallel_dl.partition import share
from parallel_dl.pipeline_parallel import PipelineParallel
from parallel_dl.reproducible import InLeaves, Summation, cut_into_leaves
from parallel_dl.schedule import Program, make
from parallel_dl.stage import NetworkStage, WholeNetwork
from parallel_dl.whole import DividedNetwork

Loss = Callable[..., Any]


def engine_for(
    network: Module,
    layout: Layout,
    mesh: Mesh,
    loss: Loss,
    input_shape: Sequence[int] | None = None,
    allreduce: str | Mapping[str, Any] = "auto",
) -> Engine:
    """The engine of a layout, for this rank of `mesh`; all ranks together.

    `loss` (outputs, targets, total) is that of whole outputs; `allreduce` is a method of
    `data_parallel.GradientAllReduce`, or a dictionary of its options. InputError for a network that is split already,
    and for a mesh of other sizes; ValueError for a layout that needs `input_shape`, that of one sample, and has none.
    """
    require_serial(network)
    sizes = {"pipe": layout.pp, "data": layout.dp, "model": layout.mp}
    if mesh.shape != sizes:
        needed = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise InputError(f"{mesh} is not of this layout, which needs {needed}")
    summation = _summation_of(network, layout, input_shape, allreduce)
    kind = HybridEngine if layout.hybrid else PipelineEngine if layout.is_pipelined else WholeEngine
    engine = kind(network, layout, mesh, summation.loss(loss), input_shape, summation)
    options = {"method": allreduce} if isinstance(allreduce, str) else dict(allreduce)
    engine.gradients = engine.sum_of_gradients(options if summation.method is None else {"method": summation.method})
    return engine


def _summation_of(
    network: Module, layout: Layout, input_shape: Sequence[int] | None, allreduce: str | Mapping[str, Any]
) -> Summation:
    """How values are added up under a layout: as they come, or in leaves, into which the network is then cut."""
    if not layout.reproducible:
        return Summation()
    if input_shape is None:
        raise ValueError("a reproducible layout needs input_shape, the shape of one sample")
    if allreduce not in ("auto", "tree"):
        raise InputError(f"all-reduce method {allreduce!r}: a reproducible layout sums in its own tree; use auto")
    one_blas_thread(always=True)
    cut_into_leaves(network, input_shape)
    return InLeaves(network, layout.dp)


class Engine:
    """One rank's part of a network and of a step. All ranks make it, and call its methods, together."""

    parallel: ModelParallel | None = None
    """the split layers, if there are any"""
    pipeline: PipelineParallel | None = None
    """the stages of a pipeline"""
    hybrid: OneWeirdTrick | None = None
    """the network of a hybrid, cut at its Flatten"""
    stage: NetworkStage
    """the object that carries out the actions of this rank's program"""
    divided: DividedNetwork
    """this rank's part, to and from whole weights"""
    gradients: GradientAllReduce
    """what sums the gradients over the ranks"""
    fails_alone = False
    """whether an error in a test of the network concerns this rank alone: no other one waits for it"""

    def __init__(
        self,
        network: Module,
        layout: Layout,
        mesh: Mesh,
        loss: Loss,
        input_shape: Sequence[int] | None,
        summation: Summation,
    ) -> None:
        self.network, self.layout, self.mesh, self.summation = network, layout, mesh, summation
        self.whole_loss = self.loss = loss
        self.data, self.model = summation.over(mesh.data), summation.over(mesh.model)
        self._programs: dict[tuple[int, int], Program] = {}
        self.divide(input_shape)

    def divide(self, input_shape: Sequence[int] | None) -> None:
        """Makes this rank's part of the network."""
        raise NotImplementedError

    def _shape(self, input_shape: Sequence[int] | None) -> Sequence[int]:
        if input_shape is None:
            raise ValueError("a layout that splits layers or has stages needs input_shape, the shape of one sample")
        return input_shape

    def _split(self, input_shape: Sequence[int] | None, stages: Sequence[str] | None = None) -> None:
        """Splits layers, if the layout does; `stages` are the layers that this rank has."""
        if not self.layout.splits_layers:
            return
        given = self.whole_loss
        self.parallel = parallelize(self.network, self.model, self._shape(input_shape), self.layout.split, given)
        self.loss = self.parallel.loss(given)

    def _require_equal(self, layers: Sequence[str] | None = None) -> None:
        if self.parallel is not None:
            require_equal_replicas(self.parallel.replicated(layers).values(), (), self.mesh.model)

    # -- weights ---------------------------------------------------------------------------------------------------
    @property
    def names(self) -> list[str]:
        """The names of this rank's parameters."""
        return [name for name, _ in self.network.named_parameters() if self.divided.has(name)]

    @property
    def parameters(self) -> list[Parameter]:
        """This rank's parameters, in that order."""
        return [parameter for name, parameter in self.network.named_parameters() if self.divided.has(name)]

    def sum_of_gradients(self, options: dict[str, Any]) -> GradientAllReduce:
        """What sums the gradients over the ranks; `options` are those of `GradientAllReduce`."""
        return GradientAllReduce(self.parameters, self.mesh.data, **options, partial_comm=self._over_partial())

    def optimizer(self, make: Callable[[Sequence[Parameter]], Optimizer], updates: Callable[[], int]) -> Optimizer:
        """The optimizer of this rank's parameters that an update of the whole batch steps; `updates()` counts these."""
        return make(self.parameters)

    def _over_partial(self) -> Communicator | None:
        """The ranks over which partial gradients are summed; None if there are none."""
        has_partial = self.parallel is not None and self.parallel.plan.has_partial
        return self.mesh.over("data", "model") if has_partial else None

    @property
    def sharing(self) -> Communicator:
        """The ranks that share this rank's layers."""
        return self.mesh.model

    # -- a step ----------------------------------------------------------------------------------------------------
    def program(self, microbatches: int, batch_size: int) -> Program:
        """This rank's program for a batch."""
        key = self._key(microbatches, batch_size)
        if key not in self._programs:
            partial = self.parallel is not None and self.parallel.plan.has_partial
            plan = self.layout.plan(batch_size, microbatches, partial)
            self._programs[key] = plan.programs[self.mesh.pipe.rank * self.layout.dp + self.mesh.data.rank]
        return self._programs[key]

    def _key(self, microbatches: int, batch_size: int) -> tuple[int, int]:
        return microbatches, 0

    def accumulating(self, gradients: GradientAllReduce) -> AbstractContextManager[None]:
        """Around all microbatches of a program whose stage object does not say itself which backward is the last."""
        return nullcontext()

    def sum_losses(self, local: np.ndarray) -> np.ndarray:
        """The losses of the global batch from this rank's summands."""
        if self.parallel is not None:
            local = self.parallel.whole_loss(self.whole_loss, local)
        return self.data.labelled("report").all_reduce(local)

    # -- tests -----------------------------------------------------------------------------------------------------
    def tested(self, samples: int) -> list[slice]:
        """Which of that many samples this rank's replica tests: one part, or one for each of its leaves."""
        ranks, rank = self.mesh.data.size, self.mesh.data.rank
        each = (self.summation.leaves or ranks) // ranks
        return [share(samples, ranks * each, rank * each + number) for number in range(each)]

    def outputs(self, x: np.ndarray) -> np.ndarray | None:
        """The network's whole output for samples x; None on ranks that do not have it."""
        scores = self.network(x).data
        return scores if self.parallel is None else self.parallel.whole_output(scores)

    def sum_of_tests(self, loss: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sums over all ranks that tested."""
        return self.data.all_reduce(loss), self.mesh.data.all_reduce(counts)

    def free(self) -> None:
        """Frees communicators (collective)."""
        if self.parallel is not None:
            self.parallel.free()


class WholeEngine(Engine):
    """Every rank of a replica computes the whole network, or its part of each layer."""

    def divide(self, input_shape: Sequence[int] | None) -> None:
        self._split(input_shape)
        self._require_equal()
        self.divided = self.parallel or DividedNetwork(self.network)
        self.fails_alone = self.parallel is None
        self.stage = WholeNetwork(self.network, lambda *given: self.loss(*given))

    def sum_of_gradients(self, options: dict[str, Any]) -> GradientAllReduce:
        gradients = super().sum_of_gradients(options)
        self.stage.accumulate = gradients.accumulate
        return gradients


class PipelineEngine(Engine):
    """A rank computes its stages, of layers that may be split, too."""

    pipeline: PipelineParallel

    def divide(self, input_shape: Sequence[int] | None) -> None:
        layout, shape = self.layout, self._shape(input_shape)
        plan = make(layout.schedule_name, layout.pp, layout.microbatches, layout.chunks)
        stages = cut_stages(self.network, shape, plan.stages, layout.stages)  # of the serial network
        self._split(shape)
        schedule, chunks = layout.schedule_name, layout.chunks
        self.pipeline = PipelineParallel(
            self.network, self.mesh.pipe, shape, schedule, self.loss, stages, chunks, self.parallel
        )
        self._require_equal(self.pipeline.layers)
        self.divided, self.stage = self.pipeline, self.pipeline.runner

    def accumulating(self, gradients: GradientAllReduce) -> AbstractContextManager[None]:
        return gradients.accumulate()

    def sum_losses(self, local: np.ndarray) -> np.ndarray:
        if self.parallel is not None:
            local = self.parallel.whole_loss(self.whole_loss, local)
        local = self.mesh.pipe.labelled("report").all_reduce(local)
        return self.data.labelled("report").all_reduce(local)

    def outputs(self, x: np.ndarray) -> np.ndarray | None:
        scores = self.pipeline.evaluate(x)
        return scores if scores is None or self.parallel is None else self.parallel.whole_output(scores)

    def sum_of_tests(self, loss: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().sum_of_tests(self.mesh.pipe.all_reduce(loss), self.mesh.pipe.all_reduce(counts))


class HybridEngine(Engine):
    """The data axis's ranks are data parallel before the first Flatten, and split the layers after it."""

    hybrid: OneWeirdTrick

    def divide(self, input_shape: Sequence[int] | None) -> None:
        layout = self.layout
        given = self.whole_loss
        shape = self._shape(input_shape)
        self.hybrid = OneWeirdTrick(self.network, self.mesh.data, shape, layout.scheme, layout.split, given)
        self.parallel, self.loss = self.hybrid.parallel, self.hybrid.loss
        self._require_equal()
        self.divided, self.stage = self.parallel, self.hybrid

    def sum_of_gradients(self, options: dict[str, Any]) -> GradientAllReduce:
        partial = [parameter for parameter in self.hybrid.classifier_parameters if parameter.is_partial]
        if partial and self.layout.variable_batch:
            raise InputError(
                "variable batch with fully connected layers along the samples: their gradients are summed once per "
                "update; split them by output or input"
            )
        summed = [*self.hybrid.feature_parameters, *partial]
        gradients = GradientAllReduce(summed, self.mesh.data, **options, partial_comm=self.mesh.data)
        self.hybrid.accumulate = gradients.accumulate
        return gradients

    def optimizer(self, make: Callable[[Sequence[Parameter]], Optimizer], updates: Callable[[], int]) -> Optimizer:
        if not self.layout.variable_batch:
            return make(self.parameters)
        of_parts = make(self.hybrid.classifier_parameters)
        self.hybrid.update_after_sub_batches(of_parts, updates)
        return make(self.hybrid.feature_parameters)

    @property
    def sharing(self) -> Communicator:
        assert self.parallel is not None
        return self.parallel.comm

    def _key(self, microbatches: int, batch_size: int) -> tuple[int, int]:
        return microbatches, batch_size

    def sum_losses(self, local: np.ndarray) -> np.ndarray:
        assert self.parallel is not None
        return self.parallel.whole_loss(self.whole_loss, local)  # that of all samples, on every rank

    def tested(self, samples: int) -> list[slice]:
        return [slice(0, samples)]  # all ranks go through all samples together

    def outputs(self, x: np.ndarray) -> np.ndarray | None:
        return self.hybrid.evaluate(x)

    def sum_of_tests(self, loss: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return loss, counts

    def free(self) -> None:
        self.hybrid.free()

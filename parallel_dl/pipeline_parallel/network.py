"""One rank's stages of a serial network, with a schedule; converts between whole weights and stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.cost.stages import Shape, Stages, cut_stages
from parallel_dl.datasets import Share
from parallel_dl.mesh import Placement
from parallel_dl.mpi import Communicator
from parallel_dl.pipeline_parallel.runner import StageRunner
from parallel_dl.schedule import Program, Schedule, make, with_messages
from parallel_dl.whole import DividedNetwork


class SplitStage(Protocol):
    """What a pipeline needs from a network whose layers are also split, across ranks that have the same stage."""

    @property
    def placements(self) -> Mapping[str, Placement]:
        """The placements of parameters and buffers, by name, over the ranks of `comm`."""

    @property
    def comm(self) -> Communicator:
        """The ranks that split the layers."""

    def activation_shape(self, name: str, samples: int) -> Shape:
        """This rank's shape for this many samples before the layer `name` of the outermost Sequential."""

    def expect(self, samples: int) -> None:
        """Announces the number of samples in the next forward pass."""

    def ensure_root(self, output: Any) -> Tensor:
        """An output from which backward can start on every rank."""


class PipelineParallel(DividedNetwork):
    """This rank's stages of `network`, run by a schedule of `parallel_dl.schedule` over `comm`.

    The network does not change; the weights of other ranks' stages are never drawn here. `starts` names the first layer
    of each stage but the first, or is the result of `cut_stages`; with `chunks`, each rank has several stages. `split`
    is the result of `model_parallel.parallelize`, if the layers are split, too: `comm` then has the ranks with the same
    coordinate on the model axis. Raises InputError for a schedule or numbers that do not fit. Methods are collective
    over `comm` and the model axis, unless they say otherwise.
    """

    def __init__(
        self,
        network: nn.Module,
        comm: Communicator,
        input_shape: Sequence[int],
        schedule: str | Schedule = "1f1b",
        loss: Callable[[Any, Any, float], Any] = nn.cross_entropy,
        starts: Sequence[str] | Stages | None = None,
        chunks: int | None = None,
        split: SplitStage | None = None,
    ) -> None:
        self.comm, self.schedule, self.chunks = comm, schedule, chunks
        plan = make(schedule, comm.size, comm.size, chunks)
        cut = starts if isinstance(starts, Stages) else cut_stages(network, input_shape, plan.stages, starts)
        self.stages = cut
        ranks = {layer: plan.rank_of[stage] for stage in range(len(cut)) for layer in cut.layers(stage)}
        placements, model = (None, None) if split is None else (split.placements, split.comm)
        super().__init__(network, placements, model, comm, lambda name: ranks[name.split(".")[0]])
        shape_at, expect, prepare = None, None, None
        if split is not None:
            firsts = [cut.layers(stage)[0] for stage in range(len(cut))]
            shape_at = lambda stage, samples: split.activation_shape(firsts[stage], samples)  # noqa: E731
            expect, prepare = split.expect, split.ensure_root
        self.runner = StageRunner(network, cut, plan.rank_of, comm, loss, network.dtype, shape_at, expect, prepare)
        self._programs: dict[int, Program] = {}
        self.layers = [layer for stage in self.runner.own for layer in self.stages.layers(stage)]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights of this rank's stages, in the order of the network."""
        return [parameter for name, parameter in self.network.named_parameters() if self.has(name)]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [name for name, _ in self.network.named_parameters() if self.has(name)]

    # -- computing -------------------------------------------------------------------------------------------------
    def run(self, microbatches: Sequence[Share], updates: Sequence[int]) -> list[float]:
        """Runs forward and backward of all microbatches; the loss of each on the last stage's rank, zeros elsewhere.

        `updates` has the number of updates before each microbatch.
        """
        count = len(microbatches)
        if count not in self._programs:
            plan = with_messages(make(self.schedule, self.comm.size, count, self.chunks))
            self._programs[count] = plan.programs[self.comm.rank]
        return self.runner.run(self._programs[count], microbatches, updates)

    def evaluate(self, x: np.ndarray) -> np.ndarray | None:
        """The network's output (n, ...) for samples x, on the last stage's rank; None on the others."""
        return self.runner.evaluate(x)

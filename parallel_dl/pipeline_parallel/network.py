"""A serial network as one rank's stages of it, with a schedule; and whole weights to and from the stages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.cost.stages import Shape, Stages, cut_stages
from parallel_dl.datasets import Share
from parallel_dl.mpi import Communicator
from parallel_dl.pipeline_parallel.runner import StageRunner
from parallel_dl.schedule import Program, Schedule, execute, make, with_messages

Arrays = dict[str, np.ndarray]


class SplitStage(Protocol):
    """What a pipeline asks of a network whose layers are split, too: among ranks that have the same stage."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The whole shapes of parameters and buffers by name."""

    def activation_shape(self, name: str, samples: int) -> Shape:
        """What this rank has of so many samples before the layer `name` of the outermost Sequential."""

    def expect(self, samples: int) -> None:
        """Says how many samples the next forward pass has."""

    def gather(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Whole arrays, on every rank, from the pieces."""

    def piece(self, name: str) -> Any:
        """This rank's part of a whole parameter or buffer, as an index."""

    def ensure_root(self, output: Any) -> Tensor:
        """An output from which backward can start on every rank."""


class PipelineParallel:
    """The stages of `network` that this rank of `comm` has, run by a schedule of `parallel_dl.schedule`.

    The network stays as it is; the weights of other ranks' stages are never drawn here. `starts` names the first layer
    of each stage but the first, or is what `cut_stages` gave; with `chunks` each rank has several stages. `split` is
    what `model_parallel.parallelize` made of the network, if its layers are split, too: `comm` then has the ranks with
    the same place in the model axis. Raises InputError for a schedule or numbers that do not fit. The methods are
    collective over `comm` and the model axis, except where they say otherwise.
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
        self.network, self.comm, self.schedule, self.chunks = network, comm, schedule, chunks
        plan = make(schedule, comm.size, comm.size, chunks)
        cut = starts if isinstance(starts, Stages) else cut_stages(network, input_shape, plan.stages, starts)
        self.stages, self.split = cut, split
        shape_at, expect, prepare = None, None, None
        if split is not None:
            firsts = [cut.layers(stage)[0] for stage in range(len(cut))]
            shape_at = lambda stage, samples: split.activation_shape(firsts[stage], samples)  # noqa: E731
            expect, prepare = split.expect, split.ensure_root
        self.runner = StageRunner(network, cut, plan.rank_of, comm, loss, network.dtype, shape_at, expect, prepare)
        self._programs: dict[int, Program] = {}
        own = {id(parameter) for parameter in self.runner.parameters}
        self._own = [name for name, parameter in network.named_parameters() if id(parameter) in own]
        self.layers = [layer for stage in self.runner.own for layer in self.stages.layers(stage)]
        self._own_buffers = [name for name, _ in network.named_buffers() if name.split(".")[0] in self.layers]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights of this rank's stages, in the order of the network."""
        named = dict(self.network.named_parameters())
        return [named[name] for name in self._own]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return list(self._own)

    # -- computing -------------------------------------------------------------------------------------------------
    def run(self, microbatches: Sequence[Share], updates: Sequence[int]) -> list[float]:
        """Forward and backward of all microbatches; the loss of each on the last stage's rank, zeros elsewhere.

        `updates` has the number of updates before each microbatch.
        """
        count = len(microbatches)
        if count not in self._programs:
            plan = with_messages(make(self.schedule, self.comm.size, count, self.chunks))
            self._programs[count] = plan.programs[self.comm.rank]
        self.runner.begin(microbatches, updates)
        execute(self._programs[count], self.runner)
        return self.runner.losses

    def evaluate(self, x: np.ndarray) -> np.ndarray | None:
        """The network's output (n, ...) for samples x, on the last stage's rank; None on the others."""
        return self.runner.evaluate(x)

    # -- whole weights ---------------------------------------------------------------------------------------------
    def own_state(self) -> Arrays:
        """Name -> a copy of the values of the parameters and buffers that this rank has. Local."""
        named = dict(self.network.named_parameters())
        buffers = dict(self.network.named_buffers())
        state = {name: named[name].data.copy() for name in self._own}
        return state | {name: buffers[name].copy() for name in self._own_buffers}

    def gather(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """All ranks' arrays by name, on every rank."""
        return dict(self._all(arrays))

    def gather_state(self) -> Arrays | None:
        """Name -> values of every parameter and buffer, on rank 0; None on the others."""
        state = self.gather(self.own_state())
        return state if self.comm.rank == 0 else None

    def _all(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, whole array) of all ranks by name: one array at a time is here beside those of the own stages."""
        if self.split is not None:
            arrays = self.split.gather(arrays)
        described = {name: (array.shape, array.dtype.str) for name, array in arrays.items()}
        owners = {
            name: (rank, *facts)
            for rank, of_rank in enumerate(self.comm.all_gather_object(described))
            for name, facts in of_rank.items()
        }
        for name, (rank, shape, dtype) in sorted(owners.items()):
            yield name, self.comm.broadcast(arrays.get(name), rank, shape, np.dtype(dtype))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets this rank's parameters and buffers from those of the whole network. Local.

        `state` has arrays, or what `checkpoint.read` gives: then nothing else is read. KeyError or ValueError says what
        does not fit.
        """
        named: dict[str, Any] = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        missing, unexpected = named.keys() - state.keys(), state.keys() - named.keys()
        if missing or unexpected:
            raise KeyError(f"state_dict: missing {sorted(missing)}, unexpected {sorted(unexpected)}")
        for name, values in named.items():  # also those of other stages: all ranks accept it, or none
            whole = values.shape if self.split is None else self.split.shapes[name]
            if tuple(state[name].shape) != whole:
                raise ValueError(f"state_dict: {name} has shape {tuple(state[name].shape)}, expected {whole}")
        self.network._rewrite()
        for name in self._own + self._own_buffers:
            values = named[name]
            piece = () if self.split is None else self.split.piece(name)
            (values.data if isinstance(values, nn.Parameter) else values)[...] = state[name][piece]

    def sha256(self) -> str:
        """A digest of all weights by name, on every rank."""
        digest = hashlib.sha256()
        for name, array in self._all(self.own_state()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

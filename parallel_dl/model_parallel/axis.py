"""The ranks of the model axis, which make the moves of a plan with differentiable collectives."""

from __future__ import annotations

from typing import Any

import numpy as np

from parallel_dl import partition
from parallel_dl.autograd import Tensor, ops
from parallel_dl.mesh import MeshShape, Move, Path, Shard, Windows
from parallel_dl.mpi import Communicator, collectives


class ModelAxis:
    """The ranks of `comm` as one line, and as the grids of rows x columns that moves need.

    `samples` is the length of the current batch, which determines the shares of arrays split along the samples.
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.samples = 0
        self._lines: dict[MeshShape, dict[str, Communicator]] = {}

    def own_samples(self) -> slice:
        """The samples of the current batch in this rank's share."""
        return partition.share(self.samples, self.comm.size, self.comm.rank)

    def over(self, mesh: MeshShape, axis: str) -> Communicator:
        """The communicator of the ranks that make a move together; the first call for a grid is collective."""
        if mesh[axis] == self.comm.size:
            return self.comm
        if mesh not in self._lines:
            place = mesh.coordinates(self.comm.rank)
            made = {}
            for name in mesh:
                color = mesh.rank({**place, name: 0})
                made[name] = self.comm.split(color, place[name], name=f"{self.comm.name}, {name}")
            self._lines[mesh] = made  # type: ignore[assignment]
        return self._lines[mesh][axis]

    def make(self, path: Path, x: Any, layer: str) -> Any:
        """Makes the moves in order with this rank's x; all ranks together.

        The ledger lists them under the name of the layer.
        """
        if not isinstance(x, Tensor):  # the network's input: no gradient comes back
            if all(move.name in _OF_CONSTANTS for move in path):
                return _part(path, x, self)
            x = Tensor(x)
        for move in path:
            x = _make(move, x, self.over(move.mesh, move.axis).labelled(layer), self.samples)
        return x

    def free(self) -> None:
        """Frees the grids' communicators (collective)."""
        lines, self._lines = self._lines, {}
        for of_grid in lines.values():
            for comm in of_grid.values():
                comm.free()


# moves of what every rank has, which has no gradient: each cuts out what it is to have
_OF_CONSTANTS = ("replicate", "shard", "select", "exchange_slices")


def _part(path: Path, x: np.ndarray, axis: ModelAxis) -> np.ndarray:
    """Where the path ends: of every array axis the last slice that it names."""
    index = [slice(None)] * x.ndim
    for move in path:
        if isinstance(move.after, Shard | Windows):
            at = move.mesh.index(axis.comm.rank, move.axis)
            index[move.after.axis] = move.after.slices(x.shape[move.after.axis], move.ranks)[at]
    return x[tuple(index)]


# -- one move ------------------------------------------------------------------------------------------------------
# Images (samples, channels, height, width) lie in memory as (height, channels, width, samples): seen in that order, a
# slice of rows is one piece of memory, and nothing has to be copied before it is sent.
_MEMORY_ORDER = (2, 1, 3, 0)
_BACK = (3, 1, 0, 2)


def _make(move: Move, x: Tensor, comm: Communicator, samples: int) -> Tensor:
    if move.name == "select":
        assert isinstance(move.after, Shard | Windows)
        own = move.after.slices(x.shape[move.after.axis], move.ranks)[comm.rank]
        return ops.index(x, index=(*(slice(None),) * (move.after.axis % len(x.shape)), own))
    if len(x.shape) != 4:
        return _collective(move, x, comm, samples, tuple(range(len(x.shape))))
    in_memory = ops.transpose(x, axes=_MEMORY_ORDER)
    return ops.transpose(_collective(move, in_memory, comm, samples, _MEMORY_ORDER), axes=_BACK)


def _collective(move: Move, x: Tensor, comm: Communicator, samples: int, order: tuple[int, ...]) -> Tensor:
    """The move of x, whose axis number i in memory is axis `order[i]` of the array."""

    def at(state: Any) -> int:
        return order.index(state.axis % len(order))

    def sizes(state: Shard) -> tuple[int, ...]:
        return state.sizes_of(samples if state.axis == 0 else x.shape[at(state)], comm.size)

    before: Any = move.before
    after: Any = move.after
    match move.name:
        case "replicate":
            return collectives.replicate(x, comm)
        case "all_reduce":
            return collectives.all_reduce(x, comm)
        case "shard":
            return collectives.shard(x, comm, at(after), sizes(after))
        case "unshard":
            return collectives.unshard(x, comm, at(before), sizes(before))
        case "all_gather":
            return collectives.all_gather(x, comm, at(before), sizes(before))
        case "reduce_scatter":
            return collectives.reduce_scatter(x, comm, at(after), sizes(after))
        case "all_to_all":
            return collectives.all_to_all(x, comm, at(after), at(before), sizes(after), sizes(before))
        case "exchange_slices":
            length = sum(sizes(before))
            owned, wanted = before.slices(length, comm.size), after.slices(length, comm.size)
            return collectives.exchange_slices(x, comm, axis=at(before), owned=owned, wanted=wanted)
    raise TypeError(f"no move {move.name}")

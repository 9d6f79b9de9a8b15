"""The moves of a plan, made: each is a differentiable collective, whose adjoint comes for free in backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, ops
from parallel_dl.mpi import Communicator, collectives
from parallel_dl.nn import Module
from parallel_dl.splits.moves import (
    AllReduce,
    AllToAll,
    Exchange,
    Gather,
    Move,
    Moves,
    Pick,
    Replicate,
    Take,
    Unshard,
)
from parallel_dl.splits.placement import Grid, slices


class ModelAxis:
    """The ranks of the model axis, in a row and as the grids that moves ask for."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self._lines: dict[Grid, dict[str, Communicator]] = {}

    def over(self, grid: Grid, over: str) -> Communicator:
        """The communicator of `Grid.group`; the first call for a grid is collective."""
        if over == "model" or grid.group(over) == self.comm.size:
            return self.comm
        if grid not in self._lines:
            row, column = divmod(self.comm.rank, grid.columns)
            rows = self.comm.split(column, row, name=f"{self.comm.name}, rows")
            columns = self.comm.split(row, column, name=f"{self.comm.name}, columns")
            assert rows is not None
            assert columns is not None
            self._lines[grid] = {"rows": rows, "columns": columns}
        return self._lines[grid][over]

    def make(self, moves: Moves, x: Any, layer: str, features_last: bool = False) -> Any:
        """Makes the moves one after the other with x, this rank's (samples, ...); all ranks together.

        The ledger enters them under the name of the layer. With `features_last` x is (..., features), and what moves
        along axis 1 goes along the last.
        """
        for move in moves:
            comm = self.over(move.grid, move.over).labelled(layer)
            x = _make(move, x, comm, features_last)
        return x

    def move_around(
        self, layer: Module, arrive: Moves, depart: Moves, name: str | None = None, features_last: bool = False
    ) -> None:
        """Makes the moves `arrive` with x before each forward of the layer, and `depart` with its result afterwards.

        `name` is the layer's in the whole network, by default the one it has then; `features_last` is as in `make`.
        """

        def made(moves: Moves, x: Any, module: Module) -> Any:
            return self.make(moves, x, name or name_of(module), features_last)

        if arrive:
            layer.register_forward_pre_hook(lambda module, x: (made(arrive, x[0], module),))
        if depart:
            layer.register_forward_hook(lambda module, x, y: made(depart, y, module))

    def free(self) -> None:
        """Gives the grids' communicators back (collective)."""
        lines, self._lines = self._lines, {}
        for of_grid in lines.values():
            for comm in of_grid.values():
                comm.free()


def name_of(module: Module) -> str:
    """The module's name in the whole network."""
    return module.path("")[0].rstrip(".")


def summed(x: Tensor, comm: Communicator, features_last: bool = False) -> Tensor:
    """The sum of the ranks' x, on all of them."""
    return _make(AllReduce(Grid(comm.size, 1), "model"), x, comm, features_last)


# -- one move ------------------------------------------------------------------------------------------------------
# Images (samples, channels, height, width) lie in memory as (height, channels, width, samples): seen in that order, a
# slice of rows is one piece of memory, and nothing has to be copied before it is sent.
_MEMORY_ORDER = (2, 1, 3, 0)
_BACK = (3, 1, 0, 2)


def _make(move: Move, x: Any, comm: Communicator, features_last: bool = False) -> Any:
    if features_last and len(x.shape) != 2:  # as many rows of features
        rows = x.reshape(_rows(x.shape)) if isinstance(x, np.ndarray) else ops.reshape(x, shape=_rows(x.shape))
        moved = _make(move, rows, comm)
        shape = (*x.shape[:-1], moved.shape[-1])
        return moved.reshape(shape) if isinstance(moved, np.ndarray) else ops.reshape(moved, shape=shape)
    if not isinstance(x, Tensor):
        if isinstance(move, Take | Pick | Replicate):  # the network's input: no gradient comes back
            return _of_constant(move, x, comm)
        x = Tensor(x)
    if isinstance(move, Pick):
        return ops.index(x, index=(slice(None), move.wanted[comm.rank]))
    if len(x.shape) != 4:
        return _collective(move, x, comm, lambda axis: axis)
    in_memory = ops.transpose(x, axes=_MEMORY_ORDER)
    return ops.transpose(_collective(move, in_memory, comm, _MEMORY_ORDER.index), axes=_BACK)


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of (..., features) as a matrix; without -1, which does not work for empty arrays."""
    return math.prod(shape[:-1]), shape[-1]


def _of_constant(move: Move, x: np.ndarray, comm: Communicator) -> np.ndarray:
    if isinstance(move, Take):
        return x[(slice(None),) * move.axis + (move.wanted[comm.rank],)]
    if isinstance(move, Pick):
        return x[:, move.wanted[comm.rank]]
    return x


def _collective(move: Move, x: Tensor, comm: Communicator, at: Callable[[int], int]) -> Tensor:
    """The move of x, whose axis a is at(a)."""
    match move:
        case Replicate():
            return collectives.replicate(x, comm)
        case AllReduce():
            return collectives.all_reduce(x, comm)
        case Unshard():
            return collectives.unshard(x, comm, at(move.axis), move.sizes)
        case Gather():
            return collectives.all_gather(x, comm, at(move.axis), move.sizes)
        case Take() | Exchange():
            owned = slices(move.sizes)
            if isinstance(move, Take):
                x = collectives.shard(x, comm, at(move.axis), move.sizes)
                if move.wanted == owned:
                    return x
            return collectives.exchange_slices(x, comm, axis=at(move.axis), owned=owned, wanted=move.wanted)
        case AllToAll():
            split, concatenated = at(move.split_axis), at(move.axis)
            return collectives.all_to_all(x, comm, split, concatenated, move.split_sizes, move.sizes)
    raise TypeError(f"no move {move}")

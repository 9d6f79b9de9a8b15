"""The moves of a plan, made: each is a differentiable collective, whose adjoint comes for free in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

    def make(self, moves: Moves, x: Any, layer: str) -> Any:
        """Makes the moves one after the other with x, this rank's (samples, ...); all ranks together.

        The ledger enters them under the name of the layer.
        """
        for move in moves:
            comm = self.over(move.grid, move.over).labelled(layer)
            x = _MADE[type(move)](move, x, comm)
        return x

    def move_around(self, layer: Module, arrive: Moves, depart: Moves) -> None:
        """Lets x make the moves `arrive` before each forward of the layer, and its result `depart` behind it."""
        if arrive:
            layer.register_forward_pre_hook(lambda module, x: (self.make(arrive, x[0], name_of(module)),))
        if depart:
            layer.register_forward_hook(lambda module, x, y: self.make(depart, y, name_of(module)))

    def free(self) -> None:
        """Gives the grids' communicators back (collective)."""
        lines, self._lines = self._lines, {}
        for of_grid in lines.values():
            for comm in of_grid.values():
                comm.free()


def name_of(module: Module) -> str:
    """The module's name in the whole network."""
    return module.path("")[0].rstrip(".")


def _replicate(move: Replicate, x: Any, comm: Communicator) -> Any:
    return collectives.replicate(x, comm) if isinstance(x, Tensor) else x


def _all_reduce(move: AllReduce, x: Any, comm: Communicator) -> Any:
    return collectives.all_reduce(x, comm)


def _gather(move: Gather, x: Any, comm: Communicator) -> Any:
    return collectives.all_gather(x, comm, move.axis, move.sizes)


def _unshard(move: Unshard, x: Any, comm: Communicator) -> Any:
    return collectives.unshard(x, comm, move.axis, move.sizes)


def _exchange(move: Exchange, x: Any, comm: Communicator) -> Any:
    return collectives.exchange_slices(x, comm, axis=move.axis, owned=slices(move.sizes), wanted=move.wanted)


def _take(move: Take, x: Any, comm: Communicator) -> Any:
    if not isinstance(x, Tensor):  # the network's input: no gradient comes back
        return x[(slice(None),) * move.axis + (move.wanted[comm.rank],)]
    own = collectives.shard(x, comm, move.axis, move.sizes)
    return own if move.wanted == slices(move.sizes) else _exchange(move, own, comm)


def _pick(move: Pick, x: Any, comm: Communicator) -> Any:
    own = (slice(None), move.wanted[comm.rank])
    return ops.index(x, index=own) if isinstance(x, Tensor) else x[own]


def _all_to_all(move: AllToAll, x: Any, comm: Communicator) -> Any:
    return collectives.all_to_all(x, comm, move.split_axis, move.axis, move.split_sizes, move.sizes)


_MADE: dict[type[Move], Callable[[Any, Any, Communicator], Any]] = {
    Replicate: _replicate,
    AllReduce: _all_reduce,
    Gather: _gather,
    Unshard: _unshard,
    Exchange: _exchange,
    Take: _take,
    Pick: _pick,
    AllToAll: _all_to_all,
}

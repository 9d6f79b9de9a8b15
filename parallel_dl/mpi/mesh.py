"""The ranks as a grid with the named axes pipe x data x model, `model` fastest; one communicator along each axis.

    rank = (pipe * data_size + data) * model_size + model

Ranks that work together most often (`model`) are neighbours, so they tend to be on one node. An axis is only a name:
each layer says how it uses it. Serial is the mesh 1x1x1, not a special case.
"""

from __future__ import annotations

from parallel_dl.errors import InputError, number_of
from parallel_dl.mpi.communicator import Communicator, alone
from parallel_dl.mpi.communicator import world as all_ranks

AXES = ("pipe", "data", "model")


class Mesh:
    """A grid of the ranks of `comm` (by default of all ranks), and this rank's place in it. Made by all together.

    `pipe`, `data` and `model` are the communicators of the ranks that differ from this one in that coordinate only,
    in the order of that coordinate. `world` is `comm`, whose ledger they share. Raises InputError unless the sizes
    multiply to `comm.size`.
    """

    pipe: Communicator
    data: Communicator
    model: Communicator

    def __init__(self, comm: Communicator | None = None, *, pipe: int = 1, data: int = 1, model: int = 1) -> None:
        self.world = all_ranks() if comm is None else comm
        self.shape = {"pipe": pipe, "data": data, "model": model}
        sizes = " x ".join(f"{axis} {size}" for axis, size in self.shape.items())
        if min(self.shape.values()) < 1:
            raise InputError(f"mesh {sizes}: every size is at least 1")
        if pipe * data * model != self.world.size:
            raise InputError(
                f"mesh {sizes}: needs {number_of(pipe * data * model, 'rank')}, the communicator has "
                f"{self.world.size}; valid are sizes whose product is {self.world.size}"
            )
        rest, model_index = divmod(self.world.rank, model)
        pipe_index, data_index = divmod(rest, data)
        self.coordinates = {"pipe": pipe_index, "data": data_index, "model": model_index}
        self._made: list[Communicator] = []
        for axis in AXES:
            setattr(self, axis, self._along(axis))

    def _along(self, axis: str) -> Communicator:
        if self.shape[axis] == 1:
            return self.world.over(alone().mpi, axis, axis)
        # one group per place on the other two axes, numbered by its lowest rank
        color = self.world.rank - self.coordinates[axis] * self._stride(axis)
        along = self.world.split(color, self.coordinates[axis], name=axis, axis=axis)
        assert along is not None
        self._made.append(along)
        return along

    def _stride(self, axis: str) -> int:
        return {"pipe": self.shape["data"] * self.shape["model"], "data": self.shape["model"], "model": 1}[axis]

    @classmethod
    def serial(cls) -> Mesh:
        """The mesh 1x1x1 of this rank alone."""
        return cls(alone())

    def __repr__(self) -> str:
        sizes = " x ".join(f"{axis} {size}" for axis, size in self.shape.items())
        return f"Mesh({sizes}; this is {', '.join(f'{axis} {at}' for axis, at in self.coordinates.items())})"

    def free(self) -> None:
        """Gives the axes' communicators back (collective); `world` stays."""
        made, self._made = self._made, []
        for comm in made:
            comm.free()

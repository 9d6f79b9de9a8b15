"""The ranks as a mesh with named axes, and one communicator per axis: by default pipe x data x model.

    rank = (pipe * data_size + data) * model_size + model

Ranks that work together most often (`model`) are neighbours, so they tend to be on one node. A mesh axis is only a
name: each layer says how it uses it. Serial is the mesh 1x1x1, not a special case.
"""

from __future__ import annotations

from parallel_dl.errors import InputError, number_of
from parallel_dl.mesh import MeshShape
from parallel_dl.mpi.communicator import Communicator, alone
from parallel_dl.mpi.communicator import world as all_ranks

AXES = ("pipe", "data", "model")


class Mesh:
    """The ranks of `comm` (by default all ranks) as a mesh, and this rank's place in it; all ranks make it together.

    `Mesh(comm, data=2, model=3)` has the axes pipe, data and model, of size 1 if not given; other names, as in
    `Mesh(comm, rows=2, columns=3)`, are added after these, the last one fastest. `mesh["rows"]`, or `mesh.data` for the
    usual names, is the communicator of the ranks that differ from this one only in that coordinate, ordered by it.
    `world` is `comm`; all share its ledger. Raises InputError unless the product of the sizes is `comm.size`.
    """

    pipe: Communicator
    data: Communicator
    model: Communicator

    def __init__(self, comm: Communicator | None = None, **sizes: int) -> None:
        self.world = all_ranks() if comm is None else comm
        others = {axis: size for axis, size in sizes.items() if axis not in AXES}
        self.shape = MeshShape(**{axis: sizes.get(axis, 1) for axis in AXES}, **others)
        if self.shape.ranks != self.world.size:
            raise InputError(
                f"mesh {self.shape}: needs {number_of(self.shape.ranks, 'rank')}, the communicator has "
                f"{self.world.size}; expected sizes whose product is {self.world.size}"
            )
        self.coordinates = self.shape.coordinates(self.world.rank)
        self._made: dict[tuple[str, ...], Communicator] = {}
        self._along = {axis: self.over(axis) for axis in self.shape}
        self.pipe, self.data, self.model = (self._along[axis] for axis in AXES)

    def __getitem__(self, axis: str) -> Communicator:
        if axis not in self._along:
            raise KeyError(f"mesh axis {axis!r}: expected one of {', '.join(self.shape)}")
        return self._along[axis]

    def over(self, *axes: str) -> Communicator:
        """The ranks that differ from this one only along these mesh axes. The first call is collective."""
        name = " x ".join(axes)
        axes = tuple(axis for axis in axes if self.shape[axis] > 1)
        if not axes:
            return self.world.over(alone().mpi, name, name)
        name = " x ".join(axes)
        if axes not in self._made:
            ranks = self.shape.along(self.world.rank, axes)
            # one group per place on the other axes, numbered by its lowest rank
            made = self.world.split(ranks[0], ranks.index(self.world.rank), name=name, axis=name)
            assert made is not None
            self._made[axes] = made
        return self._made[axes]

    @classmethod
    def serial(cls) -> Mesh:
        """The mesh 1x1x1 of this rank alone."""
        return cls(alone())

    def __repr__(self) -> str:
        return f"Mesh({self.shape}; this is {', '.join(f'{axis} {at}' for axis, at in self.coordinates.items())})"

    def free(self) -> None:
        """Frees the axes' communicators (collective); `world` is kept."""
        made, self._made = self._made, {}
        for comm in made.values():
            comm.free()

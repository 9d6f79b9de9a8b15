"""The mesh: who is whose neighbour along which axis."""

import numpy as np
import pytest

from parallel_dl.errors import InputError
from parallel_dl.mpi import Mesh


@pytest.mark.ranks(1, 2, 3, 4)
def test_axes_of_every_shape(comm):
    size = comm.size
    shapes = [(p, d, m) for p in range(1, 5) for d in range(1, 5) for m in range(1, 5) if p * d * m == size]
    assert shapes
    for pipe, data, model in shapes:
        mesh = Mesh(comm, pipe=pipe, data=data, model=model)
        assert mesh.world is comm
        assert mesh.shape == {"pipe": pipe, "data": data, "model": model}
        grid = np.arange(size).reshape(pipe, data, model)
        at = tuple(int(i[0]) for i in np.nonzero(grid == comm.rank))
        assert tuple(mesh.coordinates.values()) == at
        neighbours = {"pipe": grid[:, at[1], at[2]], "data": grid[at[0], :, at[2]], "model": grid[at[0], at[1], :]}
        for position, (axis, ranks) in enumerate(neighbours.items()):
            along = getattr(mesh, axis)
            assert (along.name, along.size, along.rank) == (axis, len(ranks), at[position])
            assert along.checked == comm.checked
            assert along.all_gather_object(comm.rank) == ranks.tolist()
        assert repr(mesh).startswith(f"Mesh(pipe {pipe} x data {data} x model {model}; this is pipe {at[0]}")
        mesh.free()
        mesh.free()


@pytest.mark.ranks(2, 3, 4)
def test_sizes_that_do_not_fit(comm):
    with pytest.raises(InputError, match=f"pipe 1 x data 5 x model 1: needs 5 ranks, the communicator has {comm.size}"):
        Mesh(comm, data=5)
    with pytest.raises(InputError, match="every size is at least 1"):
        Mesh(comm, data=-comm.size, model=-1)


@pytest.mark.ranks(1, 2)
def test_serial_is_a_mesh_of_one(comm):
    mesh = Mesh.serial()
    assert [c.size for c in (mesh.world, mesh.pipe, mesh.data, mesh.model)] == [1] * 4
    np.testing.assert_array_equal(mesh.data.all_reduce(np.arange(3)), np.arange(3))
    mesh.free()

"""In one_rank() a program cannot tell that there are other ranks; afterwards everything is as it was."""

import os

import numpy as np
import pytest
from mpi4py import MPI

from parallel_dl.mpi import Ledger, Mesh, one_rank, world
from parallel_dl.mpi.rank import Rank, as_rank

KEPT = MPI.COMM_WORLD
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


def told(names):
    return {os.environ[name] for name in names if name in os.environ}


def sizes(comm, mesh):
    raw = comm.mpi
    return {KEPT.size, MPI.COMM_WORLD.size, world().size, comm.size, raw.size, mesh.data.size, mesh.data.mpi.size}


@pytest.mark.ranks(2)
def test_every_way_to_ask(comm):
    mesh = Mesh(comm, data=2)
    assert sizes(comm, mesh) == {2}
    with one_rank():
        assert sizes(comm, mesh) == {1}
        assert {KEPT.rank, comm.rank, world().rank, mesh.data.rank, comm.mpi.rank} == {0}
        assert told(SIZES) <= {"1"}
        assert told(RANKS) <= {"0"}
        if comm.rank == 0:  # the other rank calls nothing
            assert comm.all_reduce(np.array([3.0]))[0] == 3
            assert comm.labelled("norms").all_gather_object("alone") == ["alone"]
            assert KEPT.allreduce(2) == 2
            Mesh(comm).free()
    assert sizes(comm, mesh) == {2}
    assert comm.all_reduce(np.array([comm.rank + 1.0]))[0] == 3
    assert KEPT.allreduce(1) == mesh.data.all_reduce(np.array([1]))[0] == 2
    assert told(SIZES) <= {"2"}
    mesh.free()


@pytest.mark.ranks(2)
def test_after_an_exception_and_within_another(comm):
    def fails():
        with one_rank(), one_rank():
            assert comm.size == 1
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fails()
    assert (comm.size, KEPT.size) == (2, 2)
    comm.barrier()


class Holder:
    comm = None


@pytest.mark.ranks(2)
def test_communicators_of_mpi4py_alone(comm):
    in_a_closure, Holder.comm = (MPI.COMM_WORLD.Dup() for _ in range(2))
    globals()["KEPT_DUPLICATE"] = MPI.COMM_WORLD.Dup()
    ask = lambda: {in_a_closure.size, Holder.comm.size, globals()["KEPT_DUPLICATE"].size}  # noqa: E731
    assert ask() == {2}
    with one_rank():
        assert ask() == {1}
    assert ask() == {2}
    assert in_a_closure.allreduce(1) == Holder.comm.allreduce(1) == 2
    for mpi in (in_a_closure, Holder.comm, globals().pop("KEPT_DUPLICATE")):
        mpi.Free()
    Holder.comm = None
    with one_rank():  # what has been freed is no communicator any more
        pass


@pytest.mark.ranks(2)
def test_with_a_ledger(comm):
    counted = type(comm)(comm.mpi, name="counted", ledger=Ledger(comm.rank))
    with one_rank():
        assert counted.size == counted.mpi.size == 1
        assert counted.all_reduce(np.array([2.0]))[0] == 2
    assert counted.all_reduce(np.array([2.0]))[0] == 4


@pytest.mark.ranks(2)
def test_a_world_that_is_first_made_inside(comm):
    with as_rank(Rank()):
        with one_rank():
            assert world().size == 1
        assert world().size == 2

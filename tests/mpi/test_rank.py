"""What a rank has for itself: a process has one of each, a context with a rank of its own has others."""

import ast
import threading

import numpy as np
import pytest
from conftest import ROOT

from parallel_dl.mpi import Communicator, alone, stress, world
from parallel_dl.mpi.rank import Rank, as_rank, mine


def test_one_object_of_each_class():
    assert mine(list) is mine(list) == []
    other, inner = Rank(), Rank()
    with as_rank(other):
        mine(list).append(1)
        with as_rank(inner):
            assert mine(list) == []
        assert mine(list) == other.own(list) == [1]
    assert mine(list) == []


@pytest.mark.ranks(1, 2)
def test_every_rank_of_a_process_has_its_world(comm):
    first = world()
    assert world() is first
    assert alone() is alone()
    with as_rank(Rank()):
        assert world() is not first
        assert world() is world()
        assert alone().size == 1
    found = []
    thread = threading.Thread(target=lambda: found.append(world()))
    thread.start()
    thread.join()
    assert found == [first]  # a thread of the process is still the same rank


@pytest.mark.ranks(2)
def test_stress_is_that_of_the_rank(comm):
    with stress.stressed(comm, 3) as late:
        assert stress.collects()
        with as_rank(Rank()):
            assert not stress.collects()
            assert not isinstance(Communicator(comm.mpi, checked=False).mpi, stress.Stressed)
        assert late.all_reduce(np.ones(1)) == [2]
        stress.races(late)


def test_no_module_of_mpi_keeps_a_ranks_state_in_a_variable():
    """`abort` has the hooks of the interpreter, which are the process's."""
    for path in (ROOT / "parallel_dl" / "mpi").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert path.name == "abort.py" or not any(isinstance(node, ast.Global) for node in ast.walk(tree)), path

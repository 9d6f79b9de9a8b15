"""Sums in one binary tree over the ranks: which sums are added first does not depend on the MPI library."""

import numpy as np
import pytest

from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.mpi import Communicator, Ledger, collectives
from parallel_dl.nn import Linear


def values(rank, shape=(6, 50), dtype="float32"):
    """Numbers whose sums depend on the order."""
    random = np.random.default_rng(rank)
    return (random.standard_normal(shape) * 10.0 ** random.integers(-6, 6, shape)).astype(dtype)


def tree(parts):
    half = len(parts) // 2
    return parts[0] if half == 0 else tree(parts[:half]) + tree(parts[half:])


@pytest.mark.ranks(1, 2, 4, 8)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_reduce(comm, dtype):
    expected = tree([values(rank, dtype=dtype) for rank in range(comm.size)])
    own, in_tree = values(comm.rank, dtype=dtype), comm.in_tree()
    assert in_tree.all_reduce(own).tobytes() == expected.tobytes()
    assert own.tobytes() == values(comm.rank, dtype=dtype).tobytes()
    assert in_tree.all_reduce(own, out=own) is own
    assert own.tobytes() == expected.tobytes()
    in_order = sum(values(rank, dtype=dtype) for rank in range(comm.size))
    assert comm.size < 4 or in_order.tobytes() != expected.tobytes()
    assert in_tree.all_reduce(np.array([comm.rank]), "max")[0] == comm.size - 1
    assert not comm.sums_in_tree


@pytest.mark.ranks(1, 2, 4)
@pytest.mark.parametrize("axis", [0, 1])
def test_reduce_scatter(comm, axis):
    expected = tree([values(rank) for rank in range(comm.size)])
    sizes = [1 + (rank == 0) * (expected.shape[axis] - comm.size) for rank in range(comm.size)]
    start = sum(sizes[: comm.rank])
    own = np.moveaxis(np.moveaxis(expected, axis, 0)[start : start + sizes[comm.rank]], 0, axis)
    assert np.array_equal(comm.in_tree().reduce_scatter(values(comm.rank), axis, sizes), own)


@pytest.mark.ranks(3)
def test_three_ranks_are_no_tree(comm):
    with pytest.raises(ValueError, match="a binary tree over 3 ranks"):
        comm.in_tree()


@pytest.mark.ranks(4)
def test_movements_and_labels_and_the_ledger(comm):
    """What is made of the communicator sums in the tree, too; one label is no other communicator's."""
    ledger = Ledger()
    plain = Communicator(comm.mpi, ledger=ledger, checked=False)
    expected = tree([values(rank) for rank in range(comm.size)])
    assert plain.labelled("fc1").sums_in_tree is False
    in_tree = plain.in_tree().labelled("fc1")
    with ledger.counting():
        assert collectives.all_reduce(values(comm.rank), in_tree).data.tobytes() == expected.tobytes()
    assert plain.labelled("fc1").sums_in_tree is False
    assert [(row.layer, row.call, row.messages, row.values) for row in ledger.rows()] == [("fc1", "isend", 2, 600)]


@pytest.mark.ranks(1, 2, 4)
def test_gradients(comm):
    layer = Linear(3, 2)
    gradients = GradientAllReduce(layer.parameters(), comm, "tree")
    assert (gradients.method, gradients.note) == ("tree", None)
    assert gradients.comm.sums_in_tree  # MPI's own sum of so few is often the same tree
    (layer.weight * values(comm.rank, (2, 3))).sum().backward()
    gradients.all_reduce()
    expected = tree([values(rank, (2, 3)) for rank in range(comm.size)])
    assert layer.weight.grad.tobytes() == expected.tobytes()
    assert layer.bias.grad is None

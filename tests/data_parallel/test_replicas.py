"""Weights that are no longer the same on all ranks are noticed, and named."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.data_parallel import GradientAllReduce, replicas_agree
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator, Ledger

pytestmark = pytest.mark.ranks(2, 3)


def network():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, optim.SGD(model.parameters(), lr=0.1)


def backward(model, comm):
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3) + comm.rank
    model.zero_grad()
    nn.cross_entropy(model(x), np.array([0, 1]), total=2 * comm.size).backward()


def test_equal_replicas_agree_and_no_ledger_counts_it(comm):
    counted = Communicator(comm, ledger=Ledger())
    agree = replicas_agree(network()[0].parameters(), counted, every=2)
    with counted.ledger.counting():
        for _ in range(5):
            agree()
    assert counted.ledger.rows() == []


@pytest.mark.parametrize(("every", "noticed"), [(2, 3), (4, 5)])
def test_the_first_parameter_that_differs_is_named(comm, every, noticed):
    model, _ = network()
    agree = replicas_agree(model.parameters(), comm, every)
    for update in range(1, noticed):
        if update == 2 and comm.rank == 1:
            model[2].weight.data[1, 1] += 1e-6
            model[2].bias.data[0] = 5
        agree()
    with pytest.raises(InputError, match=rf"2.weight of rank 1 is not that of rank 0 \(noticed at update {noticed}\)"):
        agree()


@pytest.mark.parametrize("late", [False, True])
def test_checked_mode_looks_by_itself(comm, late):
    """An update on rank 0 alone, and gradients that are summed after the update."""
    model, optimizer = network()
    gradients = GradientAllReduce(model.parameters(), comm)

    def train():
        for _ in range(11):
            backward(model, comm)
            if late:
                optimizer.step()
            gradients.all_reduce()
            if not late and comm.rank == 0:
                optimizer.step()

    with pytest.raises(InputError, match=r"replicas differ: 0\.weight of rank 1 is not that of rank 0"):
        train()


def test_a_right_program_is_left_alone(comm):
    model, optimizer = network()
    gradients = GradientAllReduce(model.parameters(), comm)
    for _ in range(25):
        backward(model, comm)
        gradients.all_reduce()
        optimizer.step()


def test_every_must_be_a_number_of_updates(comm):
    with pytest.raises(ValueError, match="every is 0"):
        replicas_agree(network()[0].parameters(), comm, 0)

"""Data parallel equals serial: losses, gradients, optimizer state and weights after 5 steps, dropout on."""

import numpy as np
import pytest
from serial_runs import serial_run

from parallel_dl import datasets, nn, optim
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.networks import MLP

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, 1e-3, weight_decay=1e-3),
    "adamw": lambda p: optim.AdamW(p, optim.rates.warmup(optim.rates.cosine(1e-3, 5), 2)),
}


def digits_experiment(batch_size, optimizer="momentum", seed=0, dtype="float64"):
    data = datasets.load("digits", dtype=dtype)
    return Experiment(
        lambda: MLP(data.input_shape, data.classes, hidden=(33, 17), dropout=0.25),
        data.x_train,
        data.y_train,
        OPTIMIZERS[optimizer],
        batch_size,
        seed=seed,
        dtype=dtype,
    )


def check(comm, experiment, microbatches=1, allreduce="auto", exact=False):
    serial = serial_run(comm, experiment, Layout(microbatches=1))
    parallel = record(
        experiment, Layout(dp=comm.size, microbatches=microbatches), Mesh(comm, data=comm.size), allreduce
    )
    assert_same(serial, parallel, exact=exact)


@pytest.mark.sampled(2)
@pytest.mark.ranks(1, 2, 3, 4, 8)
@pytest.mark.parametrize("batch_size", [100, 5, 64])
def test_equals_serial_for_any_batch(comm, batch_size):
    check(comm, digits_experiment(batch_size))


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_serial_for_any_optimizer(comm, optimizer):
    check(comm, digits_experiment(50, optimizer, seed=3))


@pytest.mark.ranks(1, 2, 3, 8)
@pytest.mark.parametrize("microbatches", [2, 3, 7])
def test_accumulated_microbatches_equal_the_whole_batch(comm, microbatches):
    check(comm, digits_experiment(20, seed=1), microbatches)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("allreduce", ["window", "mpi"])
def test_either_all_reduce(comm, allreduce):
    check(comm, digits_experiment(64, seed=2), allreduce=allreduce)


@pytest.mark.ranks(2, 4)
def test_float32(comm):
    check(comm, digits_experiment(64, dtype="float32"))


def _integers(low, high):
    """Sets every weight to an integer, the same on every rank."""

    def prepare(network):
        random = np.random.default_rng(5)
        for parameter in network.parameters():
            parameter.data[...] = random.integers(low, high + 1, parameter.shape)

    return prepare


def integer_experiment(build, outputs, steps, batch_size=100):
    random = np.random.default_rng(11)
    # few small integers: after k updates weights are multiples of 2**-4k, and the loss, a sum of squares, has to fit
    # into 53 bits: 32 after the point at the fifth step, and it must not grow
    x = random.integers(-1, 2, (300, 12)) * (random.random((300, 12)) < 0.15).astype(float)
    y = random.integers(-2, 3, (300, outputs)).astype(float)
    loss = lambda predictions, targets, total: nn.mse(predictions, targets, total=1)  # noqa: E731  (a sum)
    sgd = lambda p: optim.SGD(p, 2.0**-5)  # noqa: E731
    return Experiment(build, x, y, sgd, batch_size, steps, loss=loss, prepare=_integers(-2, 2))


@pytest.mark.ranks(1, 2, 3, 4, 8)
@pytest.mark.parametrize("batch_size", [100, 5])
def test_integers_at_depth_are_bitwise_equal_after_one_step(comm, batch_size):
    def build():
        return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))

    check(comm, integer_experiment(build, 3, steps=1, batch_size=batch_size), exact=True)


@pytest.mark.ranks(1, 2, 3, 4, 8)
@pytest.mark.parametrize("batch_size", [100, 5])
def test_integers_in_one_layer_are_bitwise_equal_after_five_steps(comm, batch_size):
    check(comm, integer_experiment(lambda: nn.Linear(12, 3, bias=False), 3, steps=5, batch_size=batch_size), exact=True)

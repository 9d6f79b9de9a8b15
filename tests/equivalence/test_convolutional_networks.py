"""Convolutional networks, data parallel: equal to serial, whatever method convolves."""

import numpy as np
import pytest
from serial_runs import serial_run

from parallel_dl import networks, nn, optim
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh


def experiment(build, batch_size, image=(1, 8, 8), dtype="float64", seed=0, steps=5):
    random = np.random.default_rng(seed)
    x = random.random((60, *image)).astype(dtype)
    y = random.integers(0, 4, 60)
    sgd = lambda p: optim.SGD(p, 0.02, momentum=0.9)  # noqa: E731
    return Experiment(build, x, y, sgd, batch_size, steps, seed, dtype)


def check(comm, what, microbatches=1):
    serial = serial_run(comm, what)
    parallel = record(what, Layout(dp=comm.size, microbatches=microbatches), Mesh(comm, data=comm.size))
    assert_same(serial, parallel)


@pytest.mark.ranks(8)
def test_equals_serial_on_eight_ranks(comm):
    """Some shares have no sample; `verify --all` has all networks."""
    test_equals_serial(comm, "lenet5_small", 5)


@pytest.mark.sampled(2)
@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize(
    ("name", "batch_size"), [("lenet5_small", 13), ("lenet5_small", 5), ("alexnet_small", 5), ("vgg_small", 13)]
)
def test_equals_serial(comm, name, batch_size):
    """Dropout and response normalisation in alexnet_small; 5 samples on 8 ranks leave some without any."""
    check(comm, experiment(lambda: networks.create(name, (1, 8, 8), 4), batch_size, steps=3))


@pytest.mark.sampled(2)
@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("method", ["direct", "im2col", "fft", "winograd", "winograd4x4"])
def test_every_method(comm, method):
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, method=method),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(8, 6, 3, groups=2, method=method),
            nn.GlobalAvgPool2d(),
            nn.Flatten(),
            nn.Linear(6, 4),
        )

    check(comm, experiment(build, 10, image=(3, 9, 11)))


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("channels", [8, 32], ids=["im2col", "winograd4x4"])
def test_float32(comm, channels):
    """Losses, gradients and weights to 1e-5 of the largest value in each tensor, by either method that `auto` takes.

    The network is smooth: at a corner of ReLU or of a maximum a rounding error could change a gradient by 1e-4.
    """

    def build():
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(channels * 16, 4),
        )

    what = experiment(build, 16, dtype="float32")
    serial, parallel = record(what), record(what, Layout(dp=comm.size), Mesh(comm, data=comm.size))
    assert parallel.replicas_equal
    np.testing.assert_allclose(parallel.losses, serial.losses, rtol=1e-5)
    for kind in ("gradients", "state", "weights"):
        for ours, theirs in zip(getattr(serial, kind), getattr(parallel, kind), strict=True):
            for tensor, values in ours.items():
                assert np.abs(values - theirs[tensor]).max() <= 1e-5 * np.abs(values).max(), (kind, tensor)


@pytest.mark.ranks(2, 3)
def test_accumulated_microbatches(comm):
    check(comm, experiment(lambda: networks.create("lenet5_small", (1, 8, 8), 4), 20), microbatches=3)


@pytest.mark.ranks(1, 2, 3, 4, 8)
@pytest.mark.parametrize("method", ["auto", "direct", "winograd"])
def test_integers_are_bitwise_equal(comm, method):
    """Integer weights and images, a sum of squares, max pooling and ReLU: every sum is exact, in any order."""

    def build():
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, method=method),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 2, 3, groups=2, padding=1, method=method),
            nn.Flatten(),
            nn.Linear(2 * 3 * 2, 3),
        )

    def prepare(network):
        random = np.random.default_rng(5)
        for parameter in network.parameters():
            parameter.data[...] = random.integers(-2, 3, parameter.shape)

    random = np.random.default_rng(1)
    x = random.integers(-2, 3, (40, 2, 6, 4)).astype(float)
    y = random.integers(-2, 3, (40, 3)).astype(float)
    loss = lambda predictions, targets, total: nn.mse(predictions, targets, total=1)  # noqa: E731  (a sum)
    what = Experiment(build, x, y, lambda p: optim.SGD(p, 2.0**-5), 10, 1, loss=loss, prepare=prepare)
    serial = serial_run(comm, what)
    assert_same(serial, record(what, Layout(dp=comm.size), Mesh(comm, data=comm.size)), exact=True)

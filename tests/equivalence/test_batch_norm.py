"""Batch norm under data parallelism equals serial, running statistics included; with local statistics it does not."""

import numpy as np
import pytest
from serial_runs import serial_run

from parallel_dl import nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.equivalence import Experiment, assert_same, compare, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh


class Images(nn.Module):
    """(N, features) as images (N, channels, 2, features / channels / 2)."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return x.reshape(x.shape[0], self.channels, 2, x.shape[1] // self.channels // 2)


def network(statistics="global"):
    """Both kinds, first and in the middle, with and without affine, after a bias whose gradient is zero in theory."""
    return nn.Sequential(
        nn.BatchNorm1d(12, affine=False, statistics=statistics),
        nn.Linear(12, 24),
        nn.BatchNorm1d(24, statistics=statistics),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(24, 24),
        Images(3),
        nn.BatchNorm2d(3, statistics=statistics),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(24),
        nn.Linear(24, 4),
    )


def one_in_two_places(statistics="global"):
    """The same layer after two others, and one without weights."""
    norm, bare = nn.BatchNorm1d(12, statistics=statistics), nn.BatchNorm1d(12, affine=False, statistics=statistics)
    layers = [nn.Linear(12, 12), norm, bare, nn.Tanh(), nn.Linear(12, 12), bare, norm, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(12, 4))


def experiment(batch_size, build=network, dtype="float64", seed=0, steps=5):
    random = np.random.default_rng(seed)
    x = (3 * random.normal(size=(211, 12)) + random.normal(size=12)).astype(dtype)
    y = random.integers(0, 4, 211)
    momentum = lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3)  # noqa: E731
    return Experiment(build, x, y, momentum, batch_size, steps, seed, dtype)


def runs(comm, what, microbatches=1, allreduce="auto"):
    serial = serial_run(comm, what, Layout(microbatches=microbatches))
    layout = Layout(dp=comm.size, microbatches=microbatches)
    return serial, record(what, layout, Mesh(comm, data=comm.size), allreduce)


@pytest.mark.ranks(2)
def test_one_layer_in_two_places(comm):
    assert_same(*runs(comm, experiment(11, one_in_two_places), microbatches=2))


@pytest.mark.ranks(2, 3, 8)
@pytest.mark.parametrize("batch_size", [pytest.param(37, marks=pytest.mark.grid), 5])
def test_equals_serial_for_any_batch(comm, batch_size):
    """5 samples on 8 ranks: empty shares, and shares of one."""
    assert_same(*runs(comm, experiment(batch_size)))


@pytest.mark.sampled(2)
@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize(("batch_size", "microbatches"), [(20, 3), (7, 2)])
def test_equals_serial_with_microbatches(comm, batch_size, microbatches):
    assert_same(*runs(comm, experiment(batch_size, seed=1), microbatches))


@pytest.mark.grid
@pytest.mark.ranks(1, 2, 3, 8)
@pytest.mark.parametrize(("batch_size", "microbatches"), [(20, 2), (20, 3), (7, 2), (7, 3)])
def test_equals_serial_with_the_same_microbatches(comm, batch_size, microbatches):
    assert_same(*runs(comm, experiment(batch_size, seed=1), microbatches))


@pytest.mark.sampled(2)
@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("allreduce", ["window", "mpi"])
def test_either_all_reduce(comm, allreduce):
    assert_same(*runs(comm, experiment(30, seed=2), allreduce=allreduce))


@pytest.mark.ranks(2, 4)
def test_float32(comm):
    assert_same(*runs(comm, experiment(64, dtype="float32")))


def convolutions():
    return nn.Sequential(
        Images(1),
        nn.Conv2d(1, 4, (2, 3), padding=(0, 1)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.LocalResponseNorm(3, 0.5, groups=2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


@pytest.mark.ranks(1, 2, 3, 8)
def test_behind_a_convolution(comm):
    assert_same(*runs(comm, experiment(13, convolutions)))


@pytest.mark.ranks(1)
def test_other_microbatches_are_another_computation(comm):
    what = experiment(20)
    assert not compare(record(what), record(what, Layout(microbatches=2))).equal


@pytest.mark.ranks(2, 3)
def test_local_statistics_are_another_computation_with_equal_replicas(comm):
    serial, parallel = runs(comm, experiment(30, lambda: network("local")))
    comparison = compare(serial, parallel)
    assert parallel.replicas_equal
    assert comparison.worst.error > 1e-3, comparison.message


@pytest.mark.ranks(1)
def test_local_statistics_on_one_rank_are_serial(comm):
    assert_same(*runs(comm, experiment(30, lambda: network("local"))))


@pytest.mark.ranks(1)
def test_the_magnitudes_of_a_gradient_that_is_zero_in_theory_are_not(comm):
    serial = record(experiment(20, steps=1))
    gradient, magnitude = serial.gradients[0]["1.bias"], serial.magnitudes[0]["gradients"]["1.bias"]
    assert np.abs(gradient).max() < 1e-15
    assert magnitude.min() > 1e-4


@pytest.mark.ranks(1)
def test_measuring_magnitudes_changes_nothing(comm):
    measured = record(experiment(20))
    plain = record(experiment(20), Layout(), Mesh.serial())
    assert plain.magnitudes is None
    for ours, theirs in zip(measured.weights, plain.weights):
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.ranks(2, 3, 8)
def test_own_loop_with_overlap_equals_serial(comm):
    """Nothing but a GradientAllReduce: it makes batch norm synchronised; buckets leave during backward."""
    random = np.random.default_rng(4)
    x, y = random.normal(size=(13, 12)), random.integers(0, 4, 13)
    serial, parallel = network().initialize(3, "float64"), network().initialize(3, "float64")
    gradients = GradientAllReduce(parallel.parameters(), comm, "mpi", overlap=True, bucket_bytes=256)
    first, last = (13 * rank // comm.size for rank in (comm.rank, comm.rank + 1))
    for step in range(3):
        for model, own in ((serial, slice(None)), (parallel, slice(first, last))):
            model.zero_grad()
            model.set_position(step, own.start or 0)
            nn.cross_entropy(model(x[own]), y[own], total=13).backward()
        gradients.all_reduce()
        for ours, theirs in zip(serial.parameters(), parallel.parameters()):
            np.testing.assert_allclose(ours.grad, theirs.grad, rtol=0, atol=1e-12)
            ours.data -= 0.1 * ours.grad
            theirs.data -= 0.1 * theirs.grad
    for ours, theirs in zip(serial.buffers(), parallel.buffers()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    gradients.free()

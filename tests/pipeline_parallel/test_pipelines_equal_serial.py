"""Pipelines compute what a serial run with the same microbatches computes, to the last bit where only they are used."""

import numpy as np
import pytest

from parallel_dl import networks, nn, optim
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh

SYNCHRONOUS = ("naive", "gpipe", "1f1b", "interleaved", "zb-h1")


def deep():
    """Sixteen stages can be made of it; dropout on."""
    return networks.MLP((1, 8, 8), 5, hidden=(7,) * 16, dropout=0.2)


def images():
    """Everything whose sums depend on the order of memory: normalisation, a skip connection, pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Branches(nn.Identity(), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.LocalResponseNorm(3),
        nn.GlobalAvgPool2d(),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.LayerNorm(5),
    )


def experiment(build, batch_size=19, steps=5, make=lambda p: optim.SGD(p, 0.05, momentum=0.9)):
    random = np.random.default_rng(3)
    x, y = random.random((40, 1, 8, 8)), random.integers(0, 5, 40)
    return Experiment(build, x, y, make, batch_size, steps, seed=1)


def check(comm, what, schedules, microbatches, dp=1):
    pp = comm.size // dp
    for m in microbatches:
        layout = Layout(microbatches=m)
        serial = record(what, layout) if dp > 1 else record(what, layout, Mesh.serial())  # the first with magnitudes
        for schedule in schedules:
            if schedule == "interleaved" and m % pp:
                continue
            layout = Layout(dp=dp, pp=pp, microbatches=m, schedule=schedule)
            parallel = record(what, layout, Mesh(comm, data=dp, pipe=pp))
            if dp > 1:
                assert_same(serial, parallel)
            else:
                require_same_bits(serial, parallel)


def require_same_bits(serial, parallel):
    assert parallel.replicas_equal
    assert parallel.losses == serial.losses
    for kind in ("gradients", "state", "weights"):
        for step, (ours, theirs) in enumerate(zip(getattr(serial, kind), getattr(parallel, kind), strict=True)):
            assert ours.keys() == theirs.keys()
            for name, array in ours.items():
                assert np.array_equal(array, theirs[name]), (kind, step, name)


@pytest.mark.ranks(2, 3, 4)
def test_every_schedule(comm):
    """19 samples: microbatches of different sizes, with 16 of a sample or two."""
    counts = {2: (1, 2, 3, 8, 16), 3: (3,), 4: (8,)}[comm.size]
    check(comm, experiment(deep, steps=5 if comm.size == 2 else 2), SYNCHRONOUS, counts)


@pytest.mark.ranks(8)
def test_eight_stages(comm):
    check(comm, experiment(deep, steps=2), SYNCHRONOUS, (8,))


@pytest.mark.ranks(2, 4)
def test_images(comm):
    """Behind a convolution memory has another order, which travels along."""
    check(comm, experiment(images, steps=3), ("1f1b", "zb-h1"), (3,))
    if comm.size == 2:
        check(comm, experiment(images, steps=3), ["interleaved"], (4,))


@pytest.mark.ranks(4)
@pytest.mark.parametrize("build", [deep, images])
def test_with_data_parallelism(comm, build):
    """Two replicas; with 3 samples in 4 microbatches some shares are empty."""
    check(comm, experiment(build, 9, steps=3), ("gpipe", "zb-h1"), (3,), dp=2)
    if build is deep:
        check(comm, experiment(build, batch_size=3, steps=2), ["1f1b"], (4,), dp=2)


@pytest.mark.ranks(2)
def test_adam(comm):
    check(comm, experiment(deep, make=lambda p: optim.Adam(p, 1e-2)), ["1f1b", "zb-h1"], (3,))


@pytest.mark.grid
@pytest.mark.ranks(2, 3, 4, 5, 6, 7, 8)
@pytest.mark.parametrize("schedule", SYNCHRONOUS)
def test_grid(comm, schedule):
    check(comm, experiment(deep, steps=2), [schedule], range(1, 17))


@pytest.mark.grid
@pytest.mark.ranks(2, 4, 6, 8)
@pytest.mark.parametrize("schedule", SYNCHRONOUS)
def test_grid_with_data_parallelism(comm, schedule):
    check(comm, experiment(deep, steps=2), [schedule], (1, 2, 3, 8, 16), dp=2)

"""The whole grid of data-parallel layouts against serial (make grid), and many seeds (make soak)."""

import numpy as np
import pytest
from serial_runs import serial_run

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.equivalence.verify import BUCKETS
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.networks import MLP

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: optim.AdamW(p, 1e-2),
}


METHODS = ("auto", "mpi", BUCKETS)


def check(comm, batch_size, microbatches, optimizer, seed, methods=("auto",), steps=5):
    """One serial run, made by rank 0, for all methods."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(211, 3, 5)), random.integers(0, 4, 211)
    build = lambda: MLP((3, 5), 4, hidden=(13, 7), dropout=0.3)  # noqa: E731
    experiment = Experiment(build, x, y, OPTIMIZERS[optimizer], batch_size, steps, seed, loss=nn.cross_entropy)
    serial = serial_run(comm, experiment)
    layout = Layout(dp=comm.size, microbatches=microbatches)
    for allreduce in methods:
        assert_same(serial, record(experiment, layout, Mesh(comm, data=comm.size), allreduce))


@pytest.mark.grid
@pytest.mark.ranks(1, 2, 3, 4, 5, 6, 7, 8)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize(("batch_size", "steps"), [(1, 5), (5, 5), (100, 3), (211, 2)])
def test_every_layout_equals_serial(comm, batch_size, steps, microbatches, optimizer):
    check(comm, batch_size, microbatches, optimizer, 0, METHODS, steps)


@pytest.mark.soak
@pytest.mark.ranks(2, 3, 8, timeout=600)
def test_many_seeds(comm):
    random = np.random.default_rng(1)  # the same choices on every rank
    for seed in range(200):
        batch, pieces = int(random.integers(1, 220)), int(random.integers(1, 9))
        check(comm, batch, pieces, ("sgd", "adamw")[seed % 2], seed)

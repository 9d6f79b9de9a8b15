"""Integer weights and data: every sum is exact in any order, and a split network equals the serial one bit by bit."""

import functools

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh

BATCH = 8  # and the rate, and what dropout and averages divide by: powers of two, nothing is rounded


def fully():
    return nn.Sequential(
        fc1=nn.Linear(12, 9),
        relu1=nn.ReLU(),
        fc2=nn.Linear(9, 7),
        drop=nn.Dropout(0.5),
        relu2=nn.ReLU(),
        fc3=nn.Linear(7, 5),
    )


def images():
    return nn.Sequential(
        conv1=nn.Conv2d(2, 6, 3, padding=1),
        relu1=nn.ReLU(),
        drop=nn.Dropout(0.5),
        pool=nn.MaxPool2d(3, stride=2, padding=1),
        conv2=nn.Conv2d(6, 4, 3, padding=1, groups=2),
        mean=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
        fc=nn.Linear(4 * 2 * 1, 3),
    )


def branches():
    return nn.Sequential(
        conv1=nn.Conv2d(2, 3, 3, padding=1),
        both=nn.Branches(
            nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU()),
            nn.Conv2d(3, 1, 1),
            nn.Identity(),
            join="concatenate",
        ),
        rest=nn.Branches(deep=nn.Conv2d(6, 6, 3, padding=1), around=nn.Identity()),
        mean=nn.GlobalAvgPool2d(),
        flatten=nn.Flatten(),
        fc=nn.Linear(6, 3),
    )


FULLY, IMAGES, BRANCHES = (fully, (12,)), (images, (2, 7, 4)), (branches, (2, 4, 4))
CASES = {
    "output": (*FULLY, {"fc1": "output", "fc2": "output", "fc3": "output"}),
    "input": (*FULLY, {"fc1": "input", "fc2": "input", "fc3": "input"}),
    "pair": (*FULLY, {"fc1": "output", "fc2": "input", "fc3": "output"}),
    "filters": (*IMAGES, {"conv1": "filters", "conv2": "filters", "fc": "input"}),
    "channels": (*IMAGES, {"conv1": "channels", "conv2": "towers", "fc": "output"}),
    "rows": (*IMAGES, {"features": "rows", "fc": "input"}),
    "columns": (*IMAGES, {"features": "columns", "pool": "rows"}),
    "rows-columns": (*IMAGES, {"features": "rows-columns"}),
    "towers": (*BRANCHES, {"conv1": "filters", "both": "towers", "rest": "rows"}),
    "residual": (*BRANCHES, {"conv1": "rows", "both": "filters", "rest": "rows-columns"}),
}


def whole_numbers(network):
    random = np.random.default_rng(5)
    for parameter in network.parameters():
        parameter.data[...] = random.integers(-2, 3, parameter.shape)


def experiment(name):
    build, shape, _ = CASES[name]
    random = np.random.default_rng(1)
    x = random.integers(-2, 3, (2 * BATCH, *shape)).astype(float)
    y = random.integers(-2, 3, (2 * BATCH, *nn.output_shape(build(), shape))).astype(float)
    return Experiment(build, x, y, lambda p: optim.SGD(p, 2.0**-5), BATCH, 1, loss=nn.mse, prepare=whole_numbers)


@functools.cache
def serial(name):
    return record(experiment(name))


@pytest.mark.sampled(2)
@pytest.mark.ranks(1, 2, 3, 4, 8)
@pytest.mark.parametrize("name", CASES)
def test_bitwise(comm, name):
    for dp in (1, 2) if comm.size % 2 == 0 else (1,):
        mp = comm.size // dp
        parallel = record(experiment(name), Layout(dp, mp, split=CASES[name][2]), Mesh(comm, data=dp, model=mp))
        if comm.rank == 0:
            assert_same(serial(name), parallel, exact=True)

"""Random networks, divided in random ways, equal the serial run (a few here, many with make soak)."""

import numpy as np
import pytest

from parallel_dl import nn, splits
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.optim import SGD
from parallel_dl.splits.rule import ways_of


def draw_layer(draw, shape):
    """A layer for images (channels, height, width), and the activation or norm that may follow it."""
    channels = shape[0]
    kind = draw.choice(["conv", "conv", "conv", "pool", "norm", "act", "drop", "branches"])
    if kind == "conv":
        kernel, stride, dilation = int(draw.integers(1, 4)), int(draw.integers(1, 3)), int(draw.integers(1, 3))
        groups = int(draw.choice([n for n in (1, 2, 3) if channels % n == 0]))
        after = groups * int(draw.integers(1, 4))
        padding = int(draw.integers(0, min(3, (kernel - 1) * dilation + 1)))  # no window lies in it alone
        return nn.Conv2d(channels, after, kernel, stride, padding, dilation, groups, bias=bool(draw.integers(2)))
    if kind == "pool":
        kernel = int(draw.integers(1, 4))
        pool = nn.MaxPool2d if draw.integers(2) else nn.AvgPool2d
        return pool(kernel, int(draw.integers(1, 4)), int(draw.integers(0, kernel // 2 + 1)))
    if kind == "norm":
        if draw.integers(2):
            return nn.BatchNorm2d(channels, affine=bool(draw.integers(2)))
        groups = int(draw.choice([n for n in (1, 2) if channels % n == 0]))
        return nn.LocalResponseNorm(int(draw.integers(1, 6)), 0.5, 0.75, 1.0, groups)
    if kind == "act":
        return [nn.Tanh, nn.GELU, nn.Identity][draw.integers(3)]()
    if kind == "drop":
        return nn.Dropout(float(draw.choice([0.2, 0.5])))
    join = str(draw.choice(["sum", "concatenate"]))
    width = channels if join == "sum" else int(draw.integers(1, 3))
    parts = [nn.Conv2d(channels, width, 3, padding=1), nn.Sequential(nn.Conv2d(channels, width, 1), nn.Tanh())]
    return nn.Branches(*parts, *([nn.Identity()] if draw.integers(2) else []), join=join)


def draw_network(seed):
    """(network, shape of a sample); the same for the same seed."""
    draw = np.random.default_rng(seed)
    shape = int(draw.integers(1, 4)), int(draw.integers(1, 9)), int(draw.integers(1, 9))
    layers, after = [], shape
    while len(layers) < 5:
        layer = draw_layer(draw, after)
        try:
            after = nn.output_shape(layer, after)
        except InputError:
            continue  # larger than the image
        layers.append(layer)
    layers.append(nn.Tanh())
    if draw.integers(2):
        layers.append(nn.GlobalAvgPool2d())
        after = after[0], 1, 1
    layers += [nn.Flatten(), nn.Linear(int(np.prod(after)), 5), nn.Tanh(), nn.Linear(5, 4)]
    return nn.Sequential(*layers), shape


def draw_splits(seed, ranks):
    """A way, or none, for each layer; until it can be."""
    draw = np.random.default_rng([seed, ranks])
    network, shape = draw_network(seed)
    while True:
        given = {}
        for passed in nn.layer_shapes(network, shape):
            ways = (*ways_of(passed.layer), None)
            way = ways[draw.integers(len(ways))]
            if way is not None:
                given[passed.name] = way
        try:
            splits.plan(network, shape, ranks, given)
        except InputError:
            continue  # a layer inside of a tower
        return given


def check(comm, seed):
    network, shape = draw_network(seed)
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((8, *shape)), random.integers(0, 4, 8)
    momentum = lambda parameters: SGD(parameters, 0.02, momentum=0.9)  # noqa: E731
    what = Experiment(lambda: draw_network(seed)[0], x, y, momentum, 4, 2, seed)
    for dp in (1, 2) if comm.size % 2 == 0 else (1,):
        mp = comm.size // dp
        given = draw_splits(seed, mp)
        parallel = record(what, Layout(dp, mp, split=given), Mesh(comm, data=dp, model=mp))
        if comm.rank == 0:
            try:
                assert_same(record(what), parallel)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, dp {dp}, {given}: {error}\n{network}") from None


@pytest.mark.ranks(2, 3, 4)
def test_random_networks(comm):
    for seed in range(6):
        check(comm, seed)


@pytest.mark.soak
@pytest.mark.ranks(2, 3, 4, 6, 8, timeout=1200)
@pytest.mark.parametrize("part", range(10))
def test_many_random_networks(comm, part):
    for seed in range(100 * part, 100 * part + 100):
        check(comm, seed)

"""Networks with splits: every way, every transition, sizes that divide by nothing. See `CASES`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from parallel_dl import networks, nn, optim
from parallel_dl.autograd import ops
from parallel_dl.equivalence import Experiment, Run, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Mesh

RANKS = (1, 2, 3, 4, 8)


def momentum(parameters):
    return optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3)


def adam(parameters):
    return optim.Adam(parameters, 1e-2)


def own_loss(scores, targets, total):
    """A loss of somebody's own, of which nobody knows whether it could take slices of the classes."""
    return nn.cross_entropy(ops.tanh(scores), targets, total)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    splits: Mapping[str, str] | None
    shape: tuple[int, ...]
    loss: Callable[..., Any] = nn.cross_entropy
    optimizer: Callable[..., Any] = momentum
    ranks: tuple[int, ...] = RANKS
    """of the model axis, on which it can be"""

    def experiment(self, batch_size=5, steps=5, samples=14):
        output = nn.output_shape(self.build(), self.shape)
        random = np.random.default_rng(1)
        x, y = random.standard_normal((samples, *self.shape)), random.integers(0, output[-1], (samples, *output[:-1]))
        if self.loss is nn.mse:
            y = random.standard_normal((samples, *output))
        return Experiment(self.build, x, y, self.optimizer, batch_size, steps, loss=self.loss)


# -- fully connected -----------------------------------------------------------------------------------------------
def fully(*widths, between=nn.ReLU, bias=True):
    """Linear layers fc1, fc2, ... of these widths, an activation after each but the last."""
    layers = {}
    for number, (before, after) in enumerate(pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(before, after, bias=bias)
        layers[f"act{number}"] = between()
    del layers[f"act{len(widths) - 1}"]
    return nn.Sequential(**layers)


def mlp(splits, *widths, loss=nn.cross_entropy, optimizer=momentum, **options):
    """`fully`, split so: "o i -" is fc1=output, fc2=input, and fc3 not split."""
    ways = {"o": "output", "i": "input", "w": "output:whole", "s": "output:split"}
    named = {f"fc{n}": ways[way] for n, way in enumerate(splits.split(), start=1) if way != "-"}
    return Case(lambda: fully(*widths, **options), named, widths[:1], loss, optimizer)


def chain(splits, shape, make, **options):
    """The layers that `make()` gives by name, one after the other."""
    return Case(lambda: nn.Sequential(**make()), splits, shape, **options)


def tied(kind, *arguments, **options):
    """Two layers of one kind with one weight, `a` and `b`, an activation between them."""
    layers = {"a": kind(*arguments, **options), "tanh": nn.Tanh(), "b": kind(*arguments, **options)}
    layers["b"].replace("weight", layers["a"].weight)
    return layers


def twice(layer):
    """The same layer in two places, `a` and `c`, and the same activation after each."""
    tanh = nn.Tanh()
    return {"a": layer, "b": tanh, "c": layer, "d": tanh}


def sequences():
    """Samples (4, 6), then (4, 7): more axes than features, with layers between that look at all of them."""
    return {
        "a": nn.Linear(6, 7),
        "tanh": nn.Tanh(),
        "drop": nn.Dropout(0.3),
        "b": nn.Linear(7, 5),
        "norm": nn.LayerNorm((4, 5)),
        "c": nn.Linear(5, 1, bias=False),
        "same": nn.BatchNorm1d(4),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(4, 3),
    }


def of_images():
    """Linear on the columns of an image that is divided by rows before, and by channels after it."""
    return {
        "conv": nn.Conv2d(2, 3, 3, padding=1),
        "a": nn.Linear(5, 6),
        "act": nn.Tanh(),
        "b": nn.Linear(6, 4),
        "next": nn.Conv2d(3, 4, 2),
    }


def often(layer, other):
    """`layer` in two places, each after a Linear of 7 features, and `other` in two."""
    layers = {"fc1": nn.Linear(7, 7), "one": layer, "tanh": nn.Tanh(), "same": other, "fc2": nn.Linear(7, 7)}
    return layers | {"two": layer, "act": layers["tanh"], "again": other, "fc3": nn.Linear(7, 3)}


def towers_of(drop):
    """Two branches with the same dropout, and once more after them."""
    branch = lambda: nn.Sequential(nn.Linear(5, 6), drop, nn.Tanh())  # noqa: E731
    return {"first": nn.Linear(5, 5), "both": nn.Branches(branch(), branch()), "drop": drop, "fc": nn.Linear(6, 3)}


FULLY = {
    "output": mlp("o o", 7, 5, 3),
    "input": mlp("i i", 7, 5, 3),
    "pair": mlp("- o i", 6, 7, 5, 3, between=nn.Tanh),
    "pairs": mlp("o i o i", 5, 9, 4, 7, 3, between=nn.GELU),
    "whole": mlp("w w w", 7, 5, 4, 3),
    "left split": mlp("s i s", 7, 5, 4, 3),
    "narrow": mlp("o o i o", 3, 2, 1, 5, 2, between=nn.Sigmoid),
    "narrow input": mlp("i o i -", 2, 1, 7, 1, 3),
    "no bias": mlp("i o i", 7, 5, 6, 3, bias=False),
    "logistic": mlp("o o", 7, 5, 3, loss=nn.logistic_loss),
    "mse": mlp("- o", 7, 5, 3, loss=nn.mse),
    "own loss": mlp("o o", 7, 5, 3, loss=own_loss),
    "own loss of input": mlp("o i", 7, 5, 3, loss=own_loss),
    "many classes": mlp("- o", 7, 5, 23),
    "adam": mlp("o i o", 7, 5, 6, 3, optimizer=adam),
    "not split": mlp("- -", 7, 5, 3),
    "default": Case(lambda: networks.MLP((2, 3), 4, hidden=(9, 7, 5), dropout=0.2), None, (2, 3)),
    "dropout": chain(
        {"fc1": "output", "fc2": "input", "fc3": "output"},
        (7,),
        lambda: {
            "before": nn.Dropout(0.2),
            "fc1": nn.Linear(7, 9),
            "split": nn.Dropout(0.3),
            "fc2": nn.Linear(9, 6),
            "whole": nn.Dropout(0.3),
            "fc3": nn.Linear(6, 5),
            "scores": nn.Dropout(0.1),
        },
    ),
    "norms": chain(
        {"fc1": "output", "fc2": "output", "fc3": "output"},
        (7,),
        lambda: {
            "first": nn.BatchNorm1d(7),
            "fc1": nn.Linear(7, 5),
            "split": nn.BatchNorm1d(5),
            "relu": nn.ReLU(),
            "fc2": nn.Linear(5, 6),
            "layer": nn.LayerNorm(6),
            "fc3": nn.Linear(6, 3),
            "last": nn.BatchNorm1d(3, affine=False),
        },
    ),
    "constant for long": chain(
        {"fc": "output"},
        (1, 5),
        lambda: {"first": nn.Sequential(nn.Flatten(), nn.Dropout(0)), "same": nn.Identity(), "fc": nn.Linear(5, 3)},
    ),
    "tied outputs": chain({"a": "output", "b": "output"}, (5,), lambda: tied(nn.Linear, 5, 5)),
    "tied inputs": chain({"a": "input", "b": "input"}, (5,), lambda: tied(nn.Linear, 5, 5)),
    "tied, not split": chain(
        {"fc": "output"}, (5,), lambda: tied(nn.Linear, 5, 5) | {"fc": nn.Linear(5, 7), "back": nn.Linear(7, 3)}
    ),
    "one layer twice": chain({"a": "output", "c": "output"}, (5,), lambda: twice(nn.Linear(5, 5)), loss=own_loss),
    "one unsplit layer twice": chain(
        {"fc": "output"}, (5,), lambda: {"fc": nn.Linear(5, 5), **twice(nn.Linear(5, 5)), "norm": nn.LayerNorm(5)}
    ),
    "one block twice": chain(
        {"a": "output", "c": "output"},
        (5,),
        lambda: twice(nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.ReLU(), nn.Dropout(0.3)))),
    ),
    "one dropout twice": chain({"fc": "output"}, (5,), lambda: {**twice(nn.Dropout(0.3)), "fc": nn.Linear(5, 5)}),
    "one dropout, split and whole": chain(
        {"fc1": "output", "fc2": "output", "fc3": "input"}, (7,), lambda: often(nn.Dropout(0.3), nn.Dropout(0.2))
    ),
    "one batch norm twice": chain(
        {"fc1": "output", "fc2": "output"}, (7,), lambda: often(nn.BatchNorm1d(7), nn.Identity())
    ),
    "one batch norm twice, not affine": chain(
        {"fc1": "output", "fc2": "output", "fc3": "output"},
        (7,),
        lambda: often(nn.BatchNorm1d(7, affine=False), nn.Identity()),
    ),
    "sequences": chain({"a": "output", "b": "input", "c": "output", "fc": "output"}, (4, 6), sequences),
    "sequences, the other way": chain(
        {"a": "input", "b": "output:whole", "c": "input", "fc": "input"}, (4, 6), sequences
    ),
    "sequences to the end": chain(
        {"a": "output", "b": "output"}, (4, 6), lambda: {"a": nn.Linear(6, 7), "b": nn.Linear(7, 3)}
    ),
    "one dropout in two towers": chain({"both": "towers"}, (5,), lambda: towers_of(nn.Dropout(0.4))),
}


# -- images --------------------------------------------------------------------------------------------------------
def images(splits, shape, make, **options):
    """The layers that `make()` gives by name, then Flatten and `fc`, a Linear to three classes."""

    def build():
        layers, after = make(), shape
        for layer in layers.values():
            after = nn.output_shape(layer, after)
        return nn.Sequential(**layers, flatten=nn.Flatten(), fc=nn.Linear(math.prod(after), 3))

    return Case(build, splits, shape, **options)


def two(first, second, shape, splits, *arguments, channels=(4, 6), fc=None, ranks=RANKS, **options):
    """Two convolutions, split in these ways, with tanh between them."""
    ways = {"conv1": first, "conv2": second, "fc": fc}
    one, other = channels

    def make():
        return {
            "conv1": nn.Conv2d(shape[0], one, *arguments, **options),
            "tanh": nn.Tanh(),
            "conv2": nn.Conv2d(one, other, *arguments, **options),
        }

    return images({n: way for n, way in ways.items() if way} | splits, shape, make, ranks=ranks)


def both(way, shape, *arguments, **options):
    """Two convolutions split in one way."""
    return two(way, way, shape, {}, *arguments, **options)


CONVOLUTIONS = {
    "linear on columns": images({"conv": "rows", "a": "output", "b": "input", "next": "filters"}, (2, 5, 5), of_images),
    "filters": both("filters", (2, 5, 4), 3, padding=1, channels=(5, 7)),
    "filters, few": both("filters", (3, 4, 5), 2, channels=(1, 2)),
    "filters, 2 groups": both("filters", (2, 5, 4), 3, padding=1, groups=2, channels=(6, 10)),
    "filters, 3 groups": both("filters", (3, 4, 4), 3, padding=1, groups=3, channels=(6, 9)),
    "filters, depthwise": both("filters", (5, 5, 4), 3, padding=1, groups=5, channels=(5, 10)),
    "channels": both("channels", (5, 5, 4), 3, padding=1, channels=(7, 3)),
    "channels, few": both("channels", (1, 5, 4), 3, padding=1, channels=(2, 3)),
    "filters, channels": two("filters", "channels", (3, 5, 4), {}, 3, padding=1, channels=(7, 3)),
    "filters left split": two("filters:split", "channels", (3, 5, 4), {}, 2, channels=(7, 3)),
    "filters:whole": both("filters:whole", (2, 5, 4), 3, padding=1, channels=(5, 7), bias=False),
    "towers, 2": both("towers", (2, 5, 4), 3, padding=1, groups=2, channels=(6, 4)),
    "towers, 3": both("towers", (3, 5, 4), 3, padding=1, groups=3, channels=(6, 3)),
    "towers, filters": two("towers", "filters", (6, 5, 4), {"fc": "output"}, 2, groups=3, channels=(6, 9)),
    "filters, towers": two("filters", "towers:whole", (6, 5, 4), {}, 2, groups=3, channels=(9, 6)),
    "rows": both("rows", (2, 9, 4), 3, padding=1),
    "rows, no padding": both("rows", (2, 9, 6), 3, channels=(3, 2)),
    "rows, stride": both("rows", (2, 11, 6), 3, stride=2, padding=1),
    "rows, stride without padding": both("rows", (1, 12, 7), 2, stride=(3, 2), channels=(2, 3)),
    "rows, dilation": both("rows", (2, 11, 7), 3, padding=2, dilation=2),
    "rows, kernel 1": both("rows", (3, 7, 4), 1),
    "rows, kernel 1, padding": both("rows", (2, 5, 4), 1, padding=2, channels=(2, 2)),
    "rows, kernel 1, stride": both("rows", (2, 9, 5), 1, stride=2),
    "rows, kernel larger than a slab": both("rows", (2, 6, 5), 5, padding=2),
    "rows, few": both("rows", (2, 3, 5), 3, padding=1),
    "rows, one": both("rows", (2, 1, 5), 3, padding=1),
    "rows, groups": both("rows", (4, 7, 4), 3, padding=1, groups=2),
    "rows, flat kernel": both("rows", (2, 7, 5), (1, 3), padding=(0, 1)),
    "columns": both("columns", (2, 4, 9), 3, padding=1),
    "columns, stride": both("columns", (2, 5, 11), (2, 3), stride=2, padding=1),
    "columns, few": both("columns", (2, 4, 2), 3, padding=1, bias=False),
    "rows-columns": both("rows-columns", (2, 7, 5), 3, padding=1),
    "rows-columns, stride": both("grid", (2, 9, 8), 3, stride=2, padding=1),
    "rows-columns, dilation": both("grid", (2, 9, 9), 3, padding=2, dilation=2, channels=(3, 2)),
    "rows-columns, kernel 5": both("rows-columns", (2, 6, 5), 5, padding=2, channels=(3, 2)),
    "2x2": both("2x2", (2, 7, 5), 3, padding=1, ranks=(4,)),
    "1x4": both("1x4", (2, 4, 7), 3, padding=1, ranks=(4,)),
    "2x2, 1x4": two("2x2", "1x4", (2, 7, 6), {}, 3, padding=1, ranks=(4,)),
    "4x1, 2x2": two("4x1", "2x2", (2, 7, 6), {}, 3, padding=1, ranks=(4,)),
    "2x4": both("2x4", (2, 7, 6), 3, padding=1, ranks=(8,)),
    "rows, filters": two("rows", "filters", (2, 7, 4), {}, 3, padding=1),
    "rows, channels": two("rows", "channels", (2, 7, 4), {}, 3, padding=1),
    "rows, columns": two("rows", "columns", (2, 5, 5), {}, 3, padding=1),
    "columns, filters": two("columns", "filters", (2, 5, 5), {}, 3, padding=1),
    "columns, channels": two("columns", "channels", (2, 5, 7), {"fc": "input"}, 3, padding=1),
    "filters, rows": two("filters", "rows", (2, 7, 4), {}, 3, padding=1),
    "filters, columns": two("filters", "columns", (2, 4, 7), {}, 3, padding=1),
    "filters, rows-columns": two("filters", "rows-columns", (2, 5, 5), {}, 3, padding=1),
    "rows-columns, filters": two("rows-columns", "filters", (2, 5, 5), {}, 3, padding=1, channels=(3, 5)),
    "channels, rows": two("channels", "rows", (3, 7, 4), {}, 3, padding=1),
    "rows, unsplit": two("rows", None, (2, 7, 4), {}, 3, padding=1),
    "filters, unsplit": two("filters", None, (2, 5, 4), {}, 3, padding=1),
    "unsplit, rows": two(None, "rows", (2, 7, 4), {}, 3, padding=1),
    "unsplit, rows-columns": two(None, "rows-columns", (2, 7, 5), {}, 3, padding=1),
    "unsplit, filters": two(None, "filters", (2, 5, 4), {}, 3, padding=1, groups=2),
    "unsplit, channels": two(None, "channels", (2, 5, 4), {}, 3, padding=1),
    "rows to input": both("rows", (2, 7, 4), 3, padding=1, fc="input"),
    "rows-columns to input": both("rows-columns", (2, 7, 4), 3, padding=1, fc="input"),
    "filters to input": both("filters", (2, 5, 4), 3, padding=1, fc="input"),
    "rows to output": both("rows", (2, 7, 4), 3, padding=1, fc="output"),
    "rows at the end": chain({"conv": "rows"}, (3, 5, 1), lambda: {"conv": nn.Conv2d(3, 4, 3, padding=1)}, loss=nn.mse),
    "filters at the end": chain(
        {"conv": "filters"}, (3, 3, 1), lambda: {"conv": nn.Conv2d(3, 4, 3, padding=1)}, loss=nn.mse
    ),
    "classes of pixels": chain(
        {"conv": "filters"}, (3, 3, 4), lambda: {"conv": nn.Conv2d(3, 5, 3, padding=1, bias=False)}
    ),
    "classes of pixels in rows": chain(
        {"conv": "rows"}, (3, 5, 4), lambda: {"conv": nn.Conv2d(3, 2, 3, padding=1, bias=False)}
    ),
    "tied, rows": images({"a": "rows", "b": "rows"}, (3, 7, 4), lambda: tied(nn.Conv2d, 3, 3, 3, padding=1)),
    "tied, filters": images({"a": "filters", "b": "filters"}, (3, 5, 4), lambda: tied(nn.Conv2d, 3, 3, 3, padding=1)),
    "every way": images(
        {
            "conv1": "rows",
            "conv2": "filters",
            "conv3": "rows-columns",
            "conv4": "channels",
            "conv5": "columns",
            "conv6": "towers",
            "conv7": "rows",
            "fc": "input",
        },
        (2, 5, 4),
        lambda: {
            name: layer
            for n in range(1, 8)
            for name, layer in {
                f"conv{n}": nn.Conv2d(2 if n == 1 else 4, 4, 3, padding=1, groups=2 if n == 6 else 1),
                f"tanh{n}": nn.Tanh(),
            }.items()
        },
    ),
}

CONV = {"conv": lambda: nn.Conv2d(2, 6, 3, padding=1), "small": lambda: nn.Conv2d(2, 3, 3, padding=1)}


def after(way, shape, layers, conv="conv", **more):
    """A convolution split in this way, then these layers, made by functions, named 1, 2, ..."""
    splits = {"conv": way} | more
    return images(
        splits,
        shape,
        lambda: {"conv": CONV[conv]()} | {f"layer{n}": make() for n, make in enumerate(layers, start=1)},
    )


def max_pool():
    return nn.MaxPool2d(3, stride=2, padding=1)


def norm(size, groups=1):
    return lambda: nn.LocalResponseNorm(size, alpha=0.7, beta=0.6, k=1.5, groups=groups)


def batch_norm(**options):
    return lambda: nn.BatchNorm2d(6, **options)


def late(p=0.3):
    return nn.Dropout(p)


def next_conv(**options):
    return lambda: nn.Conv2d(6, 4, 3, padding=1, **options)


LAYERS = {
    "max pool follows rows": after("rows", (2, 9, 5), [max_pool]),
    "max pool follows rows-columns": after("rows-columns", (2, 9, 7), [max_pool]),
    "max pool follows filters": after("filters", (2, 7, 5), [max_pool]),
    "max pool in rows": after("filters", (2, 9, 5), [max_pool], layer1="rows"),
    "max pool in columns": after("rows", (2, 5, 9), [max_pool], layer1="columns"),
    "max pool first": images({"pool": "rows"}, (2, 9, 5), lambda: {"pool": max_pool()}),
    "max pool first in tiles": images(
        {"pool": "rows-columns", "conv": "rows"}, (2, 9, 7), lambda: {"pool": max_pool(), "conv": CONV["conv"]()}
    ),
    "max pool after nothing split": images(
        {"pool": "rows-columns"}, (2, 9, 7), lambda: {"conv": CONV["conv"](), "pool": max_pool()}
    ),
    "max pool with gaps": after("rows", (2, 11, 5), [lambda: nn.MaxPool2d(2, stride=3)]),
    "avg pool follows rows": after("rows", (2, 9, 5), [lambda: nn.AvgPool2d(2)]),
    "avg pool in tiles": after(
        "rows", (2, 9, 7), [lambda: nn.AvgPool2d(3, stride=2, padding=1)], layer1="rows-columns"
    ),
    "avg pool follows filters": after("filters", (2, 6, 4), [lambda: nn.AvgPool2d(2)], "small"),
    "pools, few rows": after("rows", (2, 5, 5), [max_pool, max_pool]),
    "global pool on rows": after("rows", (2, 7, 4), [nn.GlobalAvgPool2d]),
    "global pool on tiles": after("rows-columns", (2, 7, 4), [nn.Tanh, nn.GlobalAvgPool2d], fc="output"),
    "global pool on few rows": after("rows", (2, 2, 4), [nn.GlobalAvgPool2d]),
    "global pool on filters": after("filters", (2, 7, 4), [nn.GlobalAvgPool2d], fc="input"),
    "response norm on filters": after("filters", (2, 4, 3), [norm(5), next_conv()]),
    "response norm, even size": after("filters", (2, 4, 3), [norm(4), norm(2)], fc="output"),
    "response norm, size 1": after("filters", (2, 4, 3), [norm(1)]),
    "response norm, wide": after("filters", (2, 4, 3), [norm(9)], fc="input"),
    "response norm, 2 groups": after("filters", (2, 4, 3), [norm(5, 2), next_conv(groups=2)], layer2="filters"),
    "response norm, 3 groups": after("filters", (2, 4, 3), [norm(4, 3)]),
    "response norm on few filters": after("filters", (2, 4, 3), [norm(3)], "small"),
    "response norm on tiles": after("rows-columns", (2, 5, 4), [norm(5), norm(4, 2)]),
    "batch norm on filters": after("filters", (2, 4, 3), [batch_norm(), nn.ReLU], fc="input"),
    "batch norm on rows": after("rows", (2, 7, 3), [batch_norm(), nn.ReLU], fc="output"),
    "batch norm on tiles": after(
        "rows-columns", (2, 5, 4), [batch_norm(), next_conv(), nn.ReLU, lambda: nn.BatchNorm2d(4, affine=False)]
    ),
    "batch norm on few rows": after("rows", (2, 2, 3), [batch_norm(), nn.Tanh]),
    "layer norm after rows": after(
        "rows", (2, 5, 3), [nn.Tanh, lambda: nn.LayerNorm((6, 5, 3)), next_conv()], layer3="rows"
    ),
    "layer norm after filters": after("filters", (2, 5, 3), [nn.Tanh, lambda: nn.LayerNorm(3)]),
    "dropout on rows": after("rows", (2, 7, 3), [late, next_conv()], layer2="filters"),
    "dropout on tiles": after("rows-columns", (2, 7, 4), [late, max_pool, late]),
    "dropout on filters": after("filters", (2, 5, 3), [late, next_conv()], layer2="channels"),
    "dropout on flat filters": images(
        {"conv": "filters", "fc": "input"},
        (2, 4, 3),
        lambda: {"conv": CONV["conv"](), "flat": nn.Flatten(), "late": late()},
    ),
    "identity": after("rows", (2, 7, 3), [nn.Identity, next_conv(), nn.Identity], layer2="rows"),
    "lenet": Case(lambda: networks.create("lenet5_small", (1, 8, 8), 4), None, (1, 8, 8)),
    "alexnet": Case(lambda: small_alexnet(2), None, (1, 8, 8)),
    "alexnet, one tower": Case(
        lambda: small_alexnet(1), {"features": "rows", "classifier": "output", "fc7": "input"}, (1, 9, 7)
    ),
}


def small_alexnet(towers):
    return networks.AlexNet(
        (1, 8, 8) if towers == 2 else (1, 9, 7),
        4,
        kernels=(4, 6, 6, 8, 4),
        towers=towers,
        hidden=(7, 5),
        conv1=(5, 1, 2),
        pool_padding=1,
    )


# -- branches ------------------------------------------------------------------------------------------------------
def block(*layers, **named):
    return nn.Sequential(*layers, **named)


def towers(count, join, **options):
    """Branches of different depths on features; of different widths where they are concatenated."""

    def branch(n):
        width = 6 if join == "sum" else 2 + n % 3
        if n % 3 == 1:
            return nn.Linear(5, width)
        inner = block(nn.Linear(5, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Dropout(0.2))
        return block(inner, nn.Linear(4, width)) if n % 3 else block(nn.Linear(5, width), nn.ReLU())

    def make():
        both = nn.Branches(*[branch(n) for n in range(count)], join=join)
        width = nn.output_shape(both, (5,))[0]
        return {"first": nn.Linear(5, 5), "both": both, "act": nn.Tanh(), "fc": nn.Linear(width, 3)}

    return chain({"both": "towers", **options}, (5,), make)


def side_by_side(splits, shape, branches, join="sum", channels=3, after=(), **options):
    """A convolution, then Branches `both` made by `branches()`, then the layers `after`."""

    def make():
        layers = {"conv": nn.Conv2d(shape[0], channels, 3, padding=1), "both": nn.Branches(join=join, **branches())}
        return layers | {f"layer{n}": layer() for n, layer in enumerate(after, start=1)}

    return images(splits, shape, make, **options)


def same(before=3, after=3, kernel=3, **options):
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, **options)


def residual():
    return {"deep": block(a=same(), relu=nn.ReLU(), b=same()), "around": nn.Identity()}


BRANCHES = {
    **{f"towers, {join} of {n}": towers(n, join) for n in (2, 3, 5) for join in ("sum", "concatenate")},
    "towers to input": towers(3, "concatenate", fc="input", first="output"),
    "towers:whole": towers(2, "concatenate", both="towers:whole", first="input"),
    "towers of images": side_by_side(
        {"both": "towers"},
        (2, 4, 3),
        lambda: {"a": block(same(), nn.ReLU()), "b": same(after=4), "c": block(block(same(after=2, kernel=1)))},
        "concatenate",
        after=[lambda: norm(3)()],
    ),
    "towers of images after rows": side_by_side(
        {"conv": "rows", "both": "towers", "fc": "input"}, (2, 7, 3), lambda: {"a": same(), "b": nn.Identity()}
    ),
    "branch in branch": side_by_side(
        {"both": "towers"},
        (2, 4, 3),
        lambda: {
            "a": nn.Branches(same(), nn.Identity()),
            "b": nn.Branches(same(after=2), same(after=1), join="concatenate"),
        },
    ),
    "residual, rows": side_by_side(
        {"conv": "rows", "both.deep.a": "rows", "both.deep.b": "rows"}, (2, 7, 4), residual, after=[nn.ReLU, same]
    ),
    "residual, rows-columns": side_by_side(
        {"features": "rows-columns"}, (2, 5, 4), residual, after=[lambda: nn.BatchNorm2d(3)]
    ),
    "residual, filters": side_by_side(
        {"conv": "filters", "both.deep.a": "filters", "both.deep.b": "filters"}, (2, 5, 4), residual
    ),
    "residual, filters and channels": side_by_side(
        {"both.deep.a": "filters", "both.deep.b": "channels"}, (2, 5, 4), residual, after=[nn.ReLU]
    ),
    "residual, ends differ": side_by_side({"both": "rows", "fc": "output"}, (2, 7, 4), residual),
    "ends differ": side_by_side(
        {"both.a": "rows", "both.b": "filters", "both.c": "columns"},
        (2, 5, 4),
        lambda: {"a": same(), "b": same(), "c": same(), "d": same()},
        after=[same],
    ),
    "ends differ, concatenated": side_by_side(
        {"conv": "rows", "both.a": "rows", "both.b": "filters", "layer2": "rows"},
        (2, 5, 4),
        lambda: {"a": same(after=2), "b": block(same(), nn.ReLU()), "c": nn.MaxPool2d(3, 1, 1)},
        "concatenate",
        after=[nn.Tanh, lambda: nn.Conv2d(8, 2, 3)],
    ),
    "concatenated tiles": side_by_side(
        {"both": "rows"},
        (2, 7, 4),
        lambda: {"a": same(after=2), "b": block(same(), nn.ReLU())},
        "concatenate",
        after=[nn.Tanh],
    ),
    "concatenated filters": side_by_side(
        {"both": "filters"}, (2, 5, 4), lambda: {"a": same(after=5), "b": same(after=2)}, "concatenate"
    ),
    "branches first": images({"both": "rows"}, (2, 7, 4), lambda: {"both": nn.Branches(a=same(2, 2), b=nn.Identity())}),
    "branches last": chain(
        {"both": "output"},
        (5,),
        lambda: {"fc": nn.Linear(5, 4), "both": nn.Branches(a=nn.Linear(4, 3), b=block(nn.Linear(4, 3), nn.Tanh()))},
    ),
    "towers alone": chain(
        {"both": "towers"}, (5,), lambda: {"both": nn.Branches(nn.Linear(5, 3), block(nn.Linear(5, 3), nn.Tanh()))}
    ),
    "towers alone, concatenated": chain(
        {"both": "towers"}, (5,), lambda: {"both": nn.Branches(nn.Linear(5, 3), nn.Linear(5, 2), join="concatenate")}
    ),
    "tower around": chain({"both": "towers"}, (5,), lambda: {"both": nn.Branches(nn.Linear(5, 5), nn.Identity())}),
    "towers last": chain(
        {"both": "towers"},
        (5,),
        lambda: {"fc": nn.Linear(5, 4), "both": nn.Branches(nn.Linear(4, 3), nn.Linear(4, 2), join="concatenate")},
    ),
    "towers last, own loss": chain(
        {"both": "towers"},
        (5,),
        lambda: {"fc": nn.Linear(5, 4), "both": nn.Branches(nn.Linear(4, 3), nn.Linear(4, 2), join="concatenate")},
        loss=own_loss,
    ),
}


# -- groups --------------------------------------------------------------------------------------------------------
def nested():
    return nn.Sequential(
        stem=block(same(2, 4), nn.ReLU(), nn.MaxPool2d(2)),
        body=block(one=block(same(4, 4), nn.ReLU()), two=same(4, 6)),
        flat=block(nn.Flatten()),
        head=block(nn.Linear(6 * 4 * 3, 7), nn.ReLU(), nn.Linear(7, 3)),
    )


GROUPS = {
    "features and classifier": Case(nested, {"features": "rows", "classifier": "output"}, (2, 8, 6)),
    "features but one": Case(nested, {"features": "rows", "body.two": "filters", "classifier": "input"}, (2, 8, 6)),
    "sequentials": Case(nested, {"stem": "columns", "body": "channels", "head": "column"}, (2, 8, 6)),
    "inner sequentials": Case(nested, {"stem.0": "grid", "body.one": "filters", "head.2": "row"}, (2, 8, 6)),
    "nested default": Case(nested, None, (2, 8, 6)),
}


# -- along the samples -----------------------------------------------------------------------------------------------
def with_everything():
    """Convolutions with batch norm and dropout, branches, then fully connected layers."""
    return {
        "conv": nn.Conv2d(2, 4, 3, padding=1),
        "norm": nn.BatchNorm2d(4),
        "relu": nn.ReLU(),
        "drop": nn.Dropout(0.2),
        "pool": nn.MaxPool2d(2),
        "both": nn.Branches(nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3, padding=1), join="concatenate"),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(6 * 4 * 3, 9),
        "act": nn.Tanh(),
        "late": nn.Dropout(0.3),
        "fc2": nn.Linear(9, 5),
    }


class Twofold(nn.Module):
    """A layer of somebody's own with layers inside: dropout and batch norm of each share are those of all samples."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)

    def forward(self, x):
        return ops.tanh(self.drop(self.norm(self.fc(x))))

    def output_shape(self, input_shape):
        return input_shape


WEIRD_TRICK = {"features": "samples", "classifier": "output"}

SAMPLES = {
    "one weird trick": chain(WEIRD_TRICK, (2, 8, 6), with_everything),
    "one weird trick, pair": chain(
        {"features": "samples", "fc1": "output", "fc2": "input"}, (2, 8, 6), with_everything
    ),
    "all samples": chain({"conv": "samples"}, (2, 8, 6), with_everything, optimizer=adam),
    "all samples, own loss": chain({"conv": "samples"}, (2, 8, 6), with_everything, loss=own_loss),
    "all samples, mse": mlp("- -", 7, 5, 3, loss=nn.mse),
    "samples after a sum": chain(
        {"fc1": "input", "act": "samples", "fc2": "output"},
        (7,),
        lambda: {"fc1": nn.Linear(7, 6), "act": nn.Tanh(), "fc2": nn.Linear(6, 3)},
    ),
    "slices after a sum": chain(
        {"fc1": "input", "fc2": "input"}, (7,), lambda: {"fc1": nn.Linear(7, 6), "fc2": nn.Linear(6, 3)}
    ),
    "rows after a sum": chain(
        {"conv": "channels", "next": "rows", "fc": "output"},
        (3, 7, 4),
        lambda: {
            "conv": nn.Conv2d(3, 4, 3, padding=1),
            "next": nn.Conv2d(4, 2, 3, padding=1),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(56, 3),
        },
    ),
    "samples between rows": chain(
        {"conv": "rows", "relu": "samples", "next": "columns"},
        (2, 6, 5),
        lambda: {
            "conv": nn.Conv2d(2, 3, 3, padding=1),
            "relu": nn.ReLU(),
            "next": nn.Conv2d(3, 2, 3),
            "flatten": nn.Flatten(),
        },
    ),
    "one's own layer": chain(
        {"own": "samples", "fc": "output"}, (6,), lambda: {"own": Twofold(), "fc": nn.Linear(6, 3)}
    ),
    "samples, then all": chain(
        {"fc1": "samples", "norm": "samples"},
        (4, 6),
        lambda: {
            "fc1": nn.Linear(6, 5),
            "norm": nn.LayerNorm((4, 5)),
            "flatten": nn.Flatten(),
            "fc2": nn.Linear(20, 3),
        },
    ),
}
SAMPLES["all samples, mse"] = dataclasses.replace(SAMPLES["all samples, mse"], splits={"fc1": "samples"})

FAMILIES = {
    "samples": SAMPLES,
    "fully connected": FULLY,
    "convolutions": CONVOLUTIONS,
    "layers": LAYERS,
    "branches": BRANCHES,
    "groups": GROUPS,
}
CASES = {name: case for family in FAMILIES.values() for name, case in family.items()}


# -- holding one against the serial run -----------------------------------------------------------------------------
@functools.cache
def serial(name: str, batch_size: int, microbatches: int) -> Run:
    return record(CASES[name].experiment(batch_size), Layout(microbatches=microbatches))


def check(comm: Communicator, name: str, dp: int = 1, batch_size: int = 5, microbatches: int = 1) -> None:
    """The case on dp x mp ranks is the serial run: losses, gradients, optimizer state and weights of 5 steps.

    `record` has compared the replicas, so one rank is enough to hold them against the serial run.
    """
    case, mp = CASES[name], comm.size // dp
    layout = Layout(dp, mp, microbatches, case.splits)
    parallel = record(case.experiment(batch_size), layout, Mesh(comm, data=dp, model=mp))
    if comm.rank == 0:
        with naming(name):
            assert_same(serial(name, batch_size, microbatches), parallel)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """A failure inside says which case it was: of several in one test."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None

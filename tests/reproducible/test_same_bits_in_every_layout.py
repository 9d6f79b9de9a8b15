"""Losses, gradients, optimizer state and weights of every layout are those of one rank, to the last bit."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh

# ranks -> (dp, mp, pp)
LAYOUTS = {
    1: [(1, 1, 1)],
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    4: [(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 1), (2, 1, 2), (1, 2, 2)],
    8: [(8, 1, 1), (1, 8, 1), (2, 2, 2)],
}
BATCHES = [(21, 1), (19, 3), (5, 1), (5, 3)]  # samples, microbatches: some leaves are larger, some are empty


def features():
    """Widths that the leaves do not divide, and widths smaller than their number; one dropout in two places."""
    dropout = nn.Dropout(0.3)
    return nn.Sequential(
        flatten=nn.Flatten(),
        fc1=nn.Linear(48, 19),
        relu=nn.ReLU(),
        dropout=dropout,
        fc2=nn.Linear(19, 6, bias=False),
        gelu=nn.GELU(),
        fc3=nn.Linear(6, 17),
        sigmoid=nn.Sigmoid(),
        again=dropout,
        fc4=nn.Linear(17, 5),
    )


def images():
    """A pair of convolutions by filters and channels, a third one after it; slices of channels become features."""
    return nn.Sequential(
        conv1=nn.Conv2d(3, 6, 3, padding=1),
        tanh1=nn.Tanh(),
        pool1=nn.AvgPool2d(2),
        conv2=nn.Conv2d(6, 9, 3, padding=1),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(9, 11, 2, bias=False),
        pool3=nn.MaxPool2d(2, stride=1, padding=1),
        flatten=nn.Flatten(),
        fc1=nn.Linear(44, 13),
        tanh4=nn.Tanh(),
        fc2=nn.Linear(13, 5),
    )


def towers():
    """Groups that leaves divide (2) and that they do not (3), and normalisation over channels inside of them."""
    return nn.Sequential(
        conv1=nn.Conv2d(3, 12, 3, padding=1),
        norm1=nn.LocalResponseNorm(3, groups=2),
        conv2=nn.Conv2d(12, 16, 3, groups=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2, stride=1),
        inside=nn.Conv2d(16, 16, 1, groups=2),
        conv3=nn.Conv2d(16, 9, 1),
        norm3=nn.LocalResponseNorm(5),
        conv4=nn.Conv2d(9, 6, 1, groups=3),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(0.2),
        fc=nn.Linear(6, 5),
    )


def blocks():
    """Residual blocks, branches that are concatenated, and sums inside of a sample."""
    residual = nn.Branches(nn.Identity(), nn.Sequential(nn.Conv2d(10, 7, 1), nn.ReLU(), nn.Conv2d(7, 10, 1)))
    side_by_side = nn.Branches(nn.Conv2d(10, 3, 3), nn.Conv2d(10, 6, 3), nn.AvgPool2d(3, 1), join="concatenate")
    return nn.Sequential(
        conv1=nn.Conv2d(3, 10, 3, padding=1),
        norm1=nn.LayerNorm((10, 4, 4)),
        residual=residual,
        side_by_side=side_by_side,
        tanh=nn.Tanh(),
        norm2=nn.LayerNorm((19, 2, 2)),
        conv2=nn.Conv2d(19, 9, 1),
        pool=nn.GlobalAvgPool2d(),
        flatten=nn.Flatten(),
        norm3=nn.LayerNorm(9, bias=False),
        fc=nn.Linear(9, 5),
    )


def sequences():
    """Fully connected layers on the last axis of images, with all widths uneven, and a bias that is added to rows."""
    return nn.Sequential(
        fc1=nn.Linear(4, 9),
        gelu=nn.GELU(),
        fc2=nn.Linear(9, 5),
        norm=nn.LayerNorm(5),
        conv=nn.Conv2d(3, 5, 2),
        fc3=nn.Linear(4, 3),
        flatten=nn.Flatten(),
        fc4=nn.Linear(45, 5),
    )


def normalised():
    """Batch norm of whole images, and of slices of their channels."""
    return nn.Sequential(
        norm0=nn.BatchNorm2d(3, affine=False),
        conv1=nn.Conv2d(3, 10, 3),
        norm1=nn.BatchNorm2d(10),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(10, 9, 1, bias=False),
        norm2=nn.BatchNorm2d(9),
        flatten=nn.Flatten(),
        fc=nn.Linear(36, 5),
    )


def twice():
    """Batch norm of features, and one fully connected layer in two places."""
    shared = nn.Linear(9, 9)
    layers = {"fc1": nn.Linear(48, 9), "norm": nn.BatchNorm1d(9), "shared": shared, "tanh": nn.Tanh(), "again": shared}
    return nn.Sequential(flatten=nn.Flatten(), **layers, fc2=nn.Linear(9, 5))


BUILDS = {
    "features": features,
    "images": images,
    "towers": towers,
    "blocks": blocks,
    "sequences": sequences,
    "normalised": normalised,
}
SPLITS = {  # beside the default
    "normalised": [{"conv1": "filters", "conv2": "filters", "fc": "output"}, {"conv2": "channels"}],
    "sequences": [{"fc1": "output", "fc2": "input", "conv": "filters", "fc3": "input", "fc4": "output"}],
    "features": [{"fc1": "input", "fc2": "output", "fc3": "output", "fc4": "input"}],
    "images": [{"conv1": "channels", "conv2": "filters", "conv3": "channels", "fc1": "input"}, {"conv3": "filters"}],
    "blocks": [{"conv1": "filters", "residual.1.0": "channels", "side_by_side.1": "filters", "conv2": "filters"}],
    "towers": [{"conv2": "filters", "conv3": "channels", "fc": "input"}],
}


OTHERS = {"twice": twice}


def experiment(name, batch_size, dtype="float64", steps=3, loss=nn.cross_entropy, adam=False, clip_norm=None):
    random = np.random.default_rng(3)
    x, y = random.random((40, 3, 4, 4)), random.integers(0, 5, 40)
    if loss is nn.mse:
        y = np.eye(5)[y]

    def make(parameters):
        return optim.Adam(parameters, 0.01) if adam else optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01)

    build, settings = (BUILDS | OTHERS)[name], {"seed": 1, "dtype": dtype, "loss": loss, "clip_norm": clip_norm}
    return Experiment(build, x.astype(dtype), y, make, batch_size, steps, **settings)


def same_bits(serial, parallel):
    assert parallel.replicas_equal
    assert parallel.losses == serial.losses
    for kind in ("gradients", "state", "weights"):
        for step, (ours, theirs) in enumerate(zip(getattr(serial, kind), getattr(parallel, kind), strict=True)):
            assert ours.keys() == theirs.keys()
            for name, array in ours.items():
                assert array.tobytes() == theirs[name].tobytes(), (kind, step, name)


def check(comm, what, layouts, microbatches=1, splits=(None,)):
    """Every layout, and split, against the serial run of rank 0."""
    errors = []
    if comm.rank == 0:
        serial = record(what, Layout(microbatches=microbatches, reproducible=True), Mesh.serial())
    for (dp, mp, pp), split in product(layouts, splits):
        if split is not None and mp == 1:
            continue
        layout = Layout(dp=dp, mp=mp, pp=pp, microbatches=microbatches, split=split, reproducible=True)
        mesh = Mesh(comm, data=dp, model=mp, pipe=pp)
        parallel = record(what, layout, mesh)
        mesh.free()
        if comm.rank == 0:
            try:
                same_bits(serial, parallel)
            except AssertionError as error:
                errors.append(f"{layout}: {str(error).splitlines()[0]}")
    found = comm.broadcast_object(errors)
    assert not found, "\n".join(found)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", BUILDS)
def test_layouts(comm, name):
    for batch_size, microbatches, dtype in ((19, 3, "float32"), (5, 1, "float64")):
        check(comm, experiment(name, batch_size, dtype, 2), LAYOUTS[2], microbatches)


@pytest.mark.sampled(2)
@pytest.mark.ranks(4)
@pytest.mark.parametrize("name", BUILDS)
def test_more_ranks(comm, name):
    """A sample: `make grid` has them all. Whoever waits on shared cores makes it slow."""
    check(comm, experiment(name, 11, "float32", 1), LAYOUTS[comm.size], 2)


@pytest.mark.ranks(8)
def test_eight_ranks(comm):
    """One network of them."""
    name = next(iter(BUILDS))
    check(comm, experiment(name, 11, "float32", 1), LAYOUTS[comm.size], 2)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", BUILDS)
def test_other_splits(comm, name):
    check(comm, experiment(name, 11, "float32", 2), [(1, comm.size, 1)], 1, SPLITS[name])


@pytest.mark.ranks(2)
@pytest.mark.parametrize("loss", [nn.logistic_loss, nn.mse])
def test_other_losses(comm, loss):
    check(comm, experiment("features", 11, "float32", 2, loss, adam=True), LAYOUTS[2], 3)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", ["features", "images", "sequences"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_large_layers(comm, monkeypatch, name, microbatches):
    """All layers as if they were: leaf by leaf where ranks divide the work, gradients added up at once."""
    monkeypatch.setattr("parallel_dl.reproducible.summation.SMALL", 0)
    check(comm, experiment(name, 19, "float32", 2), LAYOUTS[2], microbatches, (None, *SPLITS[name]))


@pytest.mark.ranks(2, 4)
def test_a_layer_in_two_places(comm):
    split = {"fc1": "output", "shared": "input", "again": "input"}
    what = experiment("twice", 20, "float32", 2)
    check(comm, what, [(comm.size, 1, 1)], 2)
    check(comm, what, [(comm.size // 2, 2, 1)], 2, (split,))


def with_norms(name):
    """LARS, whose norms are those of single weights, and gradients shortened by the norm of all.

    In float64, as norms are: weights in float32 hardly ever show another order of their sums.
    """
    what = experiment(name, 19, "float64", 2, clip_norm=0.05)
    return replace(what, make_optimizer=lambda parameters: optim.LARS(parameters, 1.0, weight_decay=1e-3))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", BUILDS)
def test_norms(comm, name):
    check(comm, with_norms(name), LAYOUTS[2], 2)
    check(comm, with_norms(name), [(1, 2, 1)], 2, SPLITS[name])


@pytest.mark.ranks(4, 8)
def test_norms_on_more_ranks(comm):
    check(comm, with_norms("features"), LAYOUTS[comm.size], 2)


@pytest.mark.parametrize("name", BUILDS)
def test_norms_are_the_ordinary_ones_up_to_rounding(name):
    what = with_norms(name)
    assert_same(record(what), leaves_of(what))


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("name", BUILDS)
def test_is_the_ordinary_run_up_to_rounding(name, microbatches):
    what = experiment(name, 19)
    assert_same(record(what, Layout(microbatches=microbatches)), leaves_of(what, microbatches))


def leaves_of(what, microbatches=1):
    return record(what, Layout(microbatches=microbatches, reproducible=True), Mesh.serial())


def test_another_tree_gives_other_bits(monkeypatch):
    """What the comparisons above would see."""
    what = experiment("features", 19, "float32", 2)
    before = leaves_of(what)
    monkeypatch.setattr("parallel_dl.reproducible.leaves.sum_of_leaves", lambda stack, first: stack.sum(0))
    with pytest.raises(AssertionError):
        same_bits(before, leaves_of(what))


@pytest.mark.grid
@pytest.mark.ranks(2, 4, 8)
@pytest.mark.parametrize(("batch_size", "microbatches"), BATCHES)
@pytest.mark.parametrize("name", BUILDS)
def test_grid(comm, name, batch_size, microbatches):
    for dtype in ("float32", "float64"):
        what = experiment(name, batch_size, dtype, 4)
        check(comm, what, LAYOUTS[comm.size], microbatches, (None, *SPLITS[name]))

"""One weird trick computes what a serial run over the whole batch computes, in every scheme, dropout on."""

import numpy as np
import pytest

from parallel_dl import networks, nn, optim
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.schedule import SCHEMES

SHAPE, CLASSES = (2, 6, 6), 5


def small(dropout=0.4):
    """Dropout before and after the Flatten; the first layer after it is split by output, the next by input."""
    return nn.Sequential(
        conv1=nn.Conv2d(2, 4, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        dropout1=nn.Dropout(dropout),
        conv2=nn.Conv2d(4, 3, 3, padding=1),
        flatten=nn.Flatten(),
        dropout2=nn.Dropout(dropout),
        fc1=nn.Linear(27, 11),
        relu2=nn.ReLU(),
        dropout3=nn.Dropout(dropout),
        fc2=nn.Linear(11, 7),
        relu3=nn.ReLU(),
        fc3=nn.Linear(7, CLASSES),
    )


def normalised():
    """Batch norm over the whole batch in the features, layer norm after the Flatten."""
    return nn.Sequential(
        conv=nn.Conv2d(2, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
        pool=nn.AvgPool2d(3),
        flatten=nn.Flatten(),
        layernorm=nn.LayerNorm(16),
        fc1=nn.Linear(16, 6),
        fc2=nn.Linear(6, CLASSES),
    )


def nested():
    """Cut between two layers that are each a Sequential of their own."""
    return nn.Sequential(
        features=nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()),
        classifier=nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(48, 9), nn.Tanh(), nn.Linear(9, CLASSES)),
    )


def one_dropout():
    """The same layer before and after the Flatten, where its masks are of parts of the batch."""
    drop = nn.Dropout(0.4)
    features = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), drop)
    return nn.Sequential(
        features, nn.Flatten(), nn.Linear(48, 9), drop, nn.Tanh(), nn.Linear(9, 8), drop, nn.Linear(8, CLASSES)
    )


def experiment(build=small, batch_size=13, steps=5, loss=nn.cross_entropy, make=None):
    random = np.random.default_rng(3)
    x, y = random.normal(size=(2 * batch_size + 3, *SHAPE)), random.integers(0, CLASSES, 2 * batch_size + 3)
    make = make or (lambda parameters: optim.SGD(parameters, 0.05, momentum=0.9))
    return Experiment(build, x, y, make, batch_size, steps, seed=1, loss=loss)


def check(comm, what, schemes=SCHEMES, split=None, allreduce="auto", microbatches=1):
    serial, errors = record(what, Layout(microbatches=microbatches)) if comm.rank == 0 else None, []
    for scheme in schemes:
        layout = Layout(dp=comm.size, hybrid="owt", scheme=scheme, split=split, microbatches=microbatches)
        parallel = record(what, layout, Mesh(comm, data=comm.size), allreduce)
        if comm.rank == 0:
            try:
                assert_same(serial, parallel)
            except AssertionError as error:
                errors.append(f"scheme {scheme}: {error}")
    found = comm.broadcast_object(errors)
    assert not found, "\n".join(found)


@pytest.mark.sampled(2)
@pytest.mark.ranks(1, 2, 3, 4)
def test_every_scheme(comm):
    """13 samples, then 13, then a batch of 3; with momentum and dropout."""
    check(comm, experiment())


@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("allreduce", ["auto", "mpi"])
def test_microbatches(comm, allreduce):
    """Each passes the scheme by itself: of 5, 4 and 4 samples, and of one."""
    overlapped = {"method": "mpi", "overlap": True, "bucket_bytes": 64} if allreduce == "mpi" else allreduce
    check(comm, experiment(steps=3), allreduce=overlapped, microbatches=3)


@pytest.mark.ranks(2)
def test_one_dropout_on_both_sides(comm):
    check(comm, experiment(one_dropout, steps=2))


@pytest.mark.ranks(8)
def test_eight_ranks(comm):
    check(comm, experiment(batch_size=20, steps=2))


@pytest.mark.sampled(2)
@pytest.mark.ranks(3, 4)
@pytest.mark.parametrize("batch_size", [1, 2, 5, 12])
def test_shares_smaller_than_the_number_of_ranks(comm, batch_size):
    """Shares of 4 and less in K pieces; with 1 and 2 samples ranks have none, and parts are empty."""
    check(comm, experiment(batch_size=batch_size, steps=3))


@pytest.mark.sampled(2)
@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize(
    "split",
    [
        {"fc1": "input"},
        {"fc1": "input", "fc2": "output", "fc3": "input"},
        {"classifier": "output"},
        {"fc2": "output"},
        {"fc1": "output", "fc3": "output"},
    ],
    ids=str,
)
def test_every_way_to_split(comm, split):
    """Where fc1 is not split its input's gradient is whole on every rank, otherwise a summand."""
    check(comm, experiment(steps=3), ("a", "c"), split)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("build", [normalised, nested])
def test_other_networks(comm, build):
    check(comm, experiment(build, steps=3))


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("loss", [nn.logistic_loss, nn.cross_entropy])
def test_losses_of_scores_that_stay_split(comm, loss):
    check(comm, experiment(steps=3, loss=loss), ("b", "c"), {"fc1": "output", "fc2": "input", "fc3": "output"})


@pytest.mark.ranks(2)
def test_gradients_summed_by_mpi_and_adam(comm):
    check(comm, experiment(steps=3, make=lambda p: optim.Adam(p, 1e-2)), ("c",), allreduce="mpi")


@pytest.mark.ranks(2, 4)
def test_alexnet_small(comm):
    """The network of the paper in small: response norm, two towers of convolutions, dropout in front of fc6 and fc7."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(10, 1, 8, 8)), random.integers(0, 10, 10)
    make = lambda parameters: optim.SGD(parameters, 0.02, momentum=0.9)  # noqa: E731
    build = lambda: networks.create("alexnet_small", (1, 8, 8), 10)  # noqa: E731
    check(comm, Experiment(build, x, y, make, 10, 2, seed=1))

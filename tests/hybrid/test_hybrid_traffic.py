"""What the arithmetic says a rank sends is what the ledger counts, with data parallelism and with the hybrid."""

import math

import numpy as np
import pytest

from parallel_dl import networks, nn, optim
from parallel_dl.cost import traffic
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Ledger, Mesh
from parallel_dl.trainer import Trainer

SHAPE = (1, 8, 8)


def counted(comm, layout, samples, build=lambda: networks.create("alexnet_small", SHAPE, 10)):
    """This rank's bytes by (axis, layer, direction) in one iteration, in float32."""
    world = Communicator(comm.mpi, checked=False, ledger=Ledger())
    random = np.random.default_rng(0)
    x, y = random.normal(size=(samples, *SHAPE)).astype(np.float32), random.integers(0, 10, samples)
    trainer = Trainer(
        build().initialize(0, "float32"),
        lambda parameters: optim.SGD(parameters, 0.02, momentum=0.9),
        layout,
        Mesh(world, data=layout.dp),
        "mpi",
        input_shape=SHAPE,
    )
    (batch,) = trainer.loader(x, y, samples, 0).epoch(0)
    with world.ledger.counting():
        trainer.step(batch)
    trainer.free()
    found = {}
    for row in world.ledger.rows():
        key = row.axis, row.layer, row.direction
        found[key] = found.get(key, 0) + row.bytes
    return found


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize(
    ("scheme", "samples", "splits"),
    [
        ("a", 24, None),
        ("b", 24, None),
        ("c", 24, {"classifier": "output"}),
        ("c", 10, {"fc6": "input"}),
        ("a", 10, {"fc7": "samples"}),
        ("b", 24, {"fc6": "samples"}),
    ],
)
def test_alexnet_small(comm, scheme, samples, splits):
    """24 samples are equal shares; 10 are not on 3 and 4 ranks."""
    said = traffic(networks.create("alexnet_small", SHAPE, 10), SHAPE, comm.size, samples, splits, comm.rank)
    layout = Layout(dp=comm.size, hybrid="owt", scheme=scheme, split=splits)
    found = counted(comm, layout, samples)
    assert found.pop(("model", "activations", "forward")) == said.activations
    assert found.pop(("model", "activations", "backward"), 0) == said.activation_gradients
    assert found.pop(("model", "targets", "forward")) == said.targets
    assert found.pop(("model", "loss", "forward"), 0) == said.loss
    assert found.pop(("data", "gradients", "backward")) == said.convolution_gradients + said.partial_gradients
    assert (said.partial_gradients > 0) == ("samples" in (splits or {}).values())
    of_layers = {("model", "fc")} if said.fully_connected else set()
    assert {(axis, layer[:2]) for axis, layer, _ in found} == of_layers
    assert sum(found.values()) == said.fully_connected
    assert said.hybrid == sum(counted(comm, layout, samples).values())
    pure = counted(comm, Layout(dp=comm.size), samples)
    assert pure == {("data", "gradients", "backward"): said.data_parallel}


@pytest.mark.ranks(2)
def test_a_first_layer_that_is_not_split(comm):
    """Its input's gradient is whole on every rank: nothing goes back."""
    said = traffic(networks.create("alexnet_small", SHAPE, 10), SHAPE, 2, 8, {"fc7": "output"}, comm.rank)
    assert said.activation_gradients == 0
    layout = Layout(dp=2, hybrid="owt", scheme="b", split={"fc7": "output"})
    assert sum(counted(comm, layout, 8).values()) == said.hybrid


def test_alexnet_by_hand():
    """8 ranks with 128 images each; 9,216 activations of an image (arXiv 1404.5997)."""
    said = traffic(networks.create("alexnet"), (3, 224, 224), 8, 1024)
    assert said.activations == said.activation_gradients == 4 * 7 * 128 * 9216
    assert said.targets == 8 * 7 * 128
    # fc6 by output, fc7 by input: its sums of 4,096; fc8 by output: its input's gradients, and 3 values for the loss
    assert said.fully_connected == 4 * 1024 * (4096 + 4096)
    assert said.loss == 4 * 1024 * 3
    weights = sum(math.prod(p.shape) for p in networks.create("alexnet").parameters())
    assert weights == 60_965_224
    assert 4 * weights <= said.data_parallel <= 4 * weights + 16 * (64 + 4)  # 16 arrays that begin on cache lines
    assert said.hybrid < said.data_parallel


def test_one_rank_sends_nothing():
    said = traffic(networks.create("alexnet_small", SHAPE, 10), SHAPE, 1, 64)
    assert (said.hybrid, said.data_parallel) == (0, 0)


def norm(*after):
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), *after)


def on_both_sides():
    shared = nn.Linear(8, 8)
    return nn.Sequential(nn.Sequential(shared, nn.Conv2d(1, 1, (8, 1))), nn.Flatten(), shared, nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (norm(nn.Linear(72, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), "layer 4 normalises over the batch"),
        (norm(nn.ReLU()), "no fully connected layer is after a Flatten"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "no convolution is before the first Flatten"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), "no fully connected layer"),
        (nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), nn.Linear(72, 3)), "no convolution is before"),
        (nn.Conv2d(1, 2, 3), "takes a Sequential, not a Conv2d"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Linear(72, 3)),
            "the first Flatten is inside 1",
        ),
        (on_both_sides(), "0.0.weight and 2.weight are one weight, used before and after the first Flatten"),
    ],
)
def test_refused_networks(network, words):
    with pytest.raises(InputError, match=words):
        traffic(network, SHAPE, 2, 8)


@pytest.mark.parametrize(("ranks", "batch"), [(0, 8), (2, 0)])
def test_refused_numbers(ranks, batch):
    with pytest.raises(InputError, match="must be at least 1"):
        traffic(networks.create("alexnet_small", SHAPE, 10), SHAPE, ranks, batch)

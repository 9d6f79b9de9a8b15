"""Costs: the published numbers, an independent count, depths by hand, and what cannot be counted."""

import numpy as np
import pytest

from parallel_dl import networks, nn
from parallel_dl.cost import cost_of
from parallel_dl.errors import InputError
from parallel_dl.nn.operations import tree


def shipped(name, size=(1, 8, 8)):
    size = networks.NETWORKS[name].input_shape or size
    return networks.create(name, size, 10), size


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("alexnet", 60_965_224, 724_406_816),
        ("alexnet_one_tower", 61_100_840, 714_188_480),
        ("vgg16", 138_357_544, 15_470_264_320),
        ("lenet5", 61_706, 416_520),
    ],
)
def test_full_networks(name, parameters, multiply_adds):
    network, size = shipped(name)
    facts = cost_of(network, size)
    assert not any(parameter.is_filled for parameter in network.parameters())
    assert (facts.parameters, facts.multiply_adds) == (parameters, multiply_adds)
    assert facts.parameters == network.parameter_count()


def test_convolutions_of_alexnet():
    """Most of the work, and few of the parameters."""
    facts = cost_of(*shipped("alexnet"))
    convolutions = [layer for layer in facts.layers if layer.kind == "Conv2d"]
    assert f"{sum(layer.multiply_adds for layer in convolutions) / facts.multiply_adds:.1%}" == "91.9%"
    assert f"{sum(layer.parameters for layer in convolutions) / facts.parameters:.1%}" == "3.8%"


def ones_through(layer, size):
    """The sum of the results for ones everywhere: each product adds 1. Zeros of the padding are ones, too."""
    assert layer.weight.is_filled
    x = np.ones((1, *size))
    if isinstance(layer, nn.Conv2d):
        (top, side), layer.padding = layer.padding, (0, 0)
        x = np.pad(x, ((0, 0), (0, 0), (top, top), (side, side)), constant_values=1)
    layer.weight.data[...] = 1
    layer.bias.data[...] = 0
    return round(layer(x).data.sum())


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 11, 9), (2, 28, 28)], ids=str)
@pytest.mark.parametrize("name", [name for name in networks.NETWORKS if name.endswith("_small")] + ["mlp"])
def test_multiply_adds_are_those_that_are_made(name, size):
    network = networks.create(name, size, 10).initialize(0, "float64")
    facts = cost_of(network, size)
    passing = {passed.name: passed for passed in nn.layer_shapes(network, size)}
    for layer in facts.layers:
        module = passing[layer.name].layer
        made = ones_through(module, passing[layer.name].input) if isinstance(module, nn.Conv2d | nn.Linear) else 0
        assert layer.multiply_adds == made, layer.name
    assert facts.multiply_adds == sum(layer.multiply_adds for layer in facts.layers)


def test_multiply_adds_of_convolutions_of_every_kind():
    for arguments in (
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 1), "bias": True},
        {"kernel_size": 3, "dilation": 2, "padding": 2, "groups": 4},
    ):
        network = nn.Sequential(nn.Conv2d(4, 8, **arguments)).initialize(0, "float64")
        counted = cost_of(network, (4, 9, 10)).multiply_adds
        assert counted == ones_through(network[0], (4, 9, 10))


@pytest.mark.parametrize(
    ("layer", "size", "work", "depth"),
    [
        # work of three samples and depth, by hand from the survey's table
        (nn.Linear(100, 7), (100,), 3 * 100 * 7, 7),
        (nn.Linear(64, 7, bias=False), (5, 64), 3 * 5 * 64 * 7, 6),
        (nn.Linear(1, 4), (1,), 3 * 4, 1),
        (nn.Conv2d(16, 32, 3, padding=1), (16, 10, 10), 3 * 32 * 100 * 16 * 9, 4 + 2 + 2),
        (nn.Conv2d(16, 32, 3, padding=1, groups=2), (16, 10, 10), 3 * 32 * 100 * 8 * 9, 3 + 2 + 2),
        (nn.Conv2d(3, 4, (5, 1)), (3, 10, 10), 3 * 4 * 60 * 3 * 5, 2 + 3 + 0),
        (nn.MaxPool2d(2), (4, 9, 8), 3 * 4 * 9 * 8, 1 + 1),
        (nn.AvgPool2d(3, stride=2), (4, 9, 8), 3 * 4 * 9 * 8, 2 + 2),
        (nn.GlobalAvgPool2d(), (4, 9, 8), 3 * 4 * 9 * 8, 4 + 3),
        (nn.LocalResponseNorm(5), (4, 9, 8), 3 * 4 * 9 * 8, 3),
        (nn.BatchNorm2d(4), (4, 9, 8), 3 * 4 * 9 * 8, 2),
        (nn.BatchNorm1d(4), (4,), 3 * 4, 2),
        (nn.LayerNorm(20), (20,), 3 * 20, 5),
        (nn.Dropout(), (4, 9), 3 * 36, 1),
        (nn.Flatten(), (4, 9), 0, 0),
        (nn.Identity(), (4, 9), 0, 0),
        *((kind(), (4, 9), 3 * 36, 1) for kind in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU)),
    ],
    ids=repr,
)
def test_work_and_depth(layer, size, work, depth):
    (one,) = cost_of(nn.Sequential(layer=layer), size, samples=3).layers
    assert (one.work, one.depth) == (work, depth)
    assert one.average_parallelism == (work / depth if depth else None)
    multiplies = isinstance(layer, nn.Linear | nn.Conv2d)
    assert one.multiply_adds == (work // 3 if multiplies else 0)


def test_depth_of_a_sum():
    assert [tree(terms) for terms in (0, 1, 2, 3, 4, 5, 8, 9, 1024, 1025)] == [0, 0, 1, 2, 2, 3, 3, 4, 10, 11]


def test_totals_and_ratios():
    network = nn.Sequential(
        image=nn.Sequential(conv=nn.Conv2d(2, 3, 3), relu=nn.ReLU()), flat=nn.Flatten(), fc=nn.Linear(12, 5)
    )
    facts = cost_of(network, (2, 4, 4), samples=10)
    assert [layer.name for layer in facts.layers] == ["image.conv", "image.relu", "flat", "fc"]
    assert [layer.kind for layer in facts.layers] == ["Conv2d", "ReLU", "Flatten", "Linear"]
    assert [layer.output_shape for layer in facts.layers] == [(3, 2, 2), (3, 2, 2), (12,), (5,)]
    assert [layer.parameters for layer in facts.layers] == [57, 0, 0, 65]
    assert [layer.activations for layer in facts.layers] == [12, 12, 12, 5]
    assert [layer.activations_per_weight for layer in facts.layers] == [12 / 57, None, None, 5 / 65]
    assert (facts.parameters, facts.multiply_adds) == (122, 12 * 18 + 60)
    assert (facts.work, facts.depth) == (10 * (216 + 12 + 60), 5 + 1 + 0 + 4)
    assert facts.average_parallelism == 288.0
    assert cost_of(nn.Sequential(), (3,)).average_parallelism is None


def test_threshold_batch():
    """2|w| / (|x| + |y|), by hand; weights are those of matrices and kernels, without biases."""
    facts = cost_of(*shipped("alexnet_one_tower"))
    layers = {layer.name: layer for layer in facts.layers}
    fc7, conv1 = layers["fc7"], layers["conv1"]
    assert (fc7.weights, fc7.inputs, fc7.activations) == (4096 * 4096, 4096, 4096)
    assert fc7.threshold_batch == 4096
    assert round(2 * fc7.weights / (2 * fc7.inputs + fc7.activations)) == 2731  # all-reduce instead of reduce-scatter
    assert conv1.input_shape == (3, 224, 224)
    assert conv1.threshold_batch == 2 * 64 * 3 * 11 * 11 / (3 * 224 * 224 + 64 * 55 * 55)
    assert round(conv1.threshold_batch, 3) == 0.135
    assert layers["fc6"].threshold_batch == 2 * 9216 * 4096 / (9216 + 4096)
    assert {layer.kind for layer in facts.layers if layer.threshold_batch is not None} == {"Conv2d", "Linear"}


@pytest.mark.parametrize(
    ("layer", "size", "weights", "threshold"),
    [
        (nn.Linear(6, 3), (6,), 18, 4),
        (nn.Linear(6, 3), (5, 6), 18, 0.8),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), 6 * 2 * 9, 2 * 108 / (100 + 54)),
        (nn.Linear(0, 3), (0,), 0, None),
        *(
            (layer, (4, 5, 6), 0, None)
            for layer in (nn.BatchNorm2d(4), nn.LayerNorm((5, 6)), nn.ReLU(), nn.MaxPool2d(2))
        ),
        (nn.Identity(), (4,), 0, None),
    ],
    ids=repr,
)
def test_choice(layer, size, weights, threshold):
    (one,) = cost_of(layer, size, samples=100).layers
    assert (one.weights, one.threshold_batch) == (weights, threshold)
    if threshold is None:
        assert one.choice(1) is None
    else:
        assert [one.choice(batch) for batch in (0.99 * threshold, threshold, 2 * threshold)] == [
            "model",
            "data",
            "data",
        ]


def test_a_join_has_no_threshold():
    join = cost_of(nn.Branches(nn.Linear(4, 2), nn.Linear(4, 2)), (4,)).layers[-1]
    assert (join.weights, join.threshold_batch, join.choice(1)) == (0, None, None)


def test_a_layer_used_twice_is_counted_twice_and_held_once():
    layer = nn.Linear(4, 4)
    facts = cost_of(nn.Sequential(a=layer, b=layer), (4,))
    assert (facts.parameters, facts.multiply_adds) == (20, 32)
    assert [one.weights for one in facts.layers] == [16, 0]


def test_branches():
    """Works add up, of the depths the deepest branch's counts, and the join holds no parameters of its own."""
    deep = nn.Sequential(fc=nn.Linear(16, 8), relu=nn.ReLU(), last=nn.Linear(8, 4))  # depths 4, 1, 3
    branches = {"deep": deep, "wide": nn.Linear(16, 4, bias=False), "flat": nn.Linear(16, 4)}  # 4, 4
    sizes = {"deep.fc": 136, "deep.relu": 0, "deep.last": 36, "wide": 64, "flat": 68}
    facts = cost_of(nn.Sequential(all=nn.Branches(**branches), tanh=nn.Tanh()), (16,), samples=10)
    assert [layer.name for layer in facts.layers] == [*(f"all.{name}" for name in sizes), "all", "tanh"]
    assert [layer.parameters for layer in facts.layers] == [*sizes.values(), 0, 0]
    join = facts.layers[-2]
    assert (join.kind, join.output_shape) == ("Branches", (4,))
    assert (join.work, join.depth, join.multiply_adds) == (10 * 4 * 2, 2, 0)
    products = 16 * 8 + 8 * 4 + 2 * 16 * 4
    assert (facts.parameters, facts.multiply_adds) == (304, products)
    assert facts.work == 10 * (products + 8 + 8 + 4)
    assert facts.depth == (4 + 1 + 3) + 2 + 1
    assert facts.average_parallelism == facts.work / 11
    joined = cost_of(nn.Branches(join="concatenate", **branches), (16,)).layers[-1]
    assert (joined.output_shape, joined.work, joined.depth, joined.average_parallelism) == ((12,), 0, 0, None)
    assert [cost_of(nn.Branches(*[nn.Identity()] * n), (7,)).depth for n in (1, 2, 3, 4, 5)] == [0, 1, 2, 2, 3]


def test_branches_within_branches():
    """The longest chain leads through the middle of the inner one: 3 + 2 + 1, then 2 + 1."""
    inner = nn.Branches(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8)))  # 3; 3 + 2; join 1
    outer = nn.Branches(nn.Sequential(inner, nn.GlobalAvgPool2d(), nn.Linear(1, 1)), nn.GlobalAvgPool2d())  # pool 2 + 3
    facts = cost_of(outer, (2, 4, 8))
    assert [layer.depth for layer in facts.layers] == [3, 3, 2, 1, 5, 1, 5, 1]
    assert facts.depth == (3 + 2) + 1 + 5 + 1 + 1
    assert sum(layer.depth for layer in facts.layers) == 21


class Twice(nn.Module):
    """A user's own module, of which only the name can be seen."""

    def forward(self, x):
        return x + x


def test_what_cannot_be_counted():
    with pytest.raises(
        InputError, match=r"^layer block.mine: what a Twice computes is not known here; expected a layer"
    ):
        cost_of(nn.Sequential(block=nn.Sequential(mine=Twice())), (3,))
    with pytest.raises(InputError, match="samples 0: must be at least 1"):
        cost_of(nn.Sequential(nn.ReLU()), (3,), samples=0)

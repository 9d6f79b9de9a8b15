"""Layers to stages: the slowest stage is as fast as it can be, by brute force; by hand; what is refused."""

import itertools
import random

import pytest

from parallel_dl import networks, nn
from parallel_dl.cost import cut_stages, lightest
from parallel_dl.errors import InputError


def heaviest(costs, cuts):
    return max(sum(costs[begin:end]) for begin, end in itertools.pairwise(cuts))


def test_lightest_is_as_good_as_brute_force():
    for seed in range(200):
        source = random.Random(seed)
        costs = [source.choice((0, 1, 2, 5, 5, 30)) for _ in range(source.randint(1, 9))]
        parts = source.randint(1, len(costs))
        cuts = lightest(costs, parts)
        assert cuts[0] == 0
        assert cuts[-1] == len(costs)
        assert all(begin < end for begin, end in itertools.pairwise(cuts))
        inner = itertools.combinations(range(1, len(costs)), parts - 1)
        assert heaviest(costs, cuts) == min(heaviest(costs, (0, *cut, len(costs))) for cut in inner)


@pytest.mark.parametrize("name", [name for name, shipped in networks.NETWORKS.items() if shipped.input_shape is None])
def test_shipped_networks(name):
    network = networks.create(name, (1, 8, 8), 10)
    weighted = [layer for layer in network if layer.parameters()]
    for stages in range(1, len(weighted) + 1):
        cut = cut_stages(network, (1, 8, 8), stages)
        assert len(cut) == stages
        assert [layer for stage in range(stages) for layer in cut.layers(stage)] == list(network._modules)
        assert all(any(network._modules[n].parameters() for n in cut.layers(s)) for s in range(stages))
        for stage in range(1, stages):
            before = nn.Sequential(*(network._modules[n] for s in range(stage) for n in cut.layers(s)))
            assert cut.inputs[stage] == nn.output_shape(before, (1, 8, 8))


def test_equal_layers_make_equal_stages():
    cut = cut_stages(networks.MLP((8,), 8, hidden=(8,) * 7), (8,), 4)
    assert [sum(name.startswith("fc") for name in cut.layers(stage)) for stage in range(4)] == [2, 2, 2, 2]


def test_by_hand():
    network = networks.MLP((8,), 8, hidden=(8,) * 3)
    cut = cut_stages(network, (8,), 3, ["fc2", "fc4"])
    assert [" ".join(cut.layers(stage)) for stage in range(3)] == ["flatten fc1 relu1", "fc2 relu2 fc3 relu3", "fc4"]
    for starts, message in (
        (["fc2"], "for 3 stages name 2 layers"),
        (["fc4", "fc2"], "stages fc2: none is valid"),
        (["fc9", "fc2"], "stages fc9: expected one of fc1"),
        (["fc1", "relu3"], "stages fc1: the stage before it has no weights"),
    ):
        with pytest.raises(InputError, match=message):
            cut_stages(network, (8,), 3, starts)

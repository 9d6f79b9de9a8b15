"""What each rank of a pipeline has and loads: by hand, and for every schedule against a count of its own."""

import pytest

from parallel_dl import networks, nn
from parallel_dl.cost import cost_of, cut_stages, loaded, pipeline_cost
from parallel_dl.errors import InputError
from parallel_dl.partition import shares
from parallel_dl.schedule import SCHEDULES, make, with_messages


def of(network, shape, name, pp, microbatches, samples, starts=None, cache=None):
    plan = make(name, pp, microbatches)
    return pipeline_cost(cost_of(network, shape, samples), cut_stages(network, shape, plan.stages, starts), plan, cache)


def two_layers():
    """3 -> 5 -> 2: 20 and 12 parameters, 15 and 10 multiply-adds, 5 + 5 and 2 values in the outputs."""
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def test_by_hand():
    """10 samples in 4 microbatches of 3, 3, 2, 2; with 1f1b two of them are alive on rank 0, and one on rank 1."""
    found = of(two_layers(), (3,), "1f1b", 2, 4, 10, cache=80)
    first, second = found.ranks
    assert (first.rank, first.stages, first.layers) == (0, (0,), (("0", "1"),))
    assert (second.rank, second.stages, second.layers) == (1, (1,), (("2",),))
    assert (first.parameters, first.weight_bytes, first.multiply_adds) == (20, 80, 150)
    assert (second.parameters, second.weight_bytes, second.multiply_adds) == (12, 48, 100)
    # forward 15 and backward 30 of the first stage, 10 and 20 of the second: the last backward ends at 195
    assert (first.idle, second.idle) == pytest.approx((1 - 180 / 195, 1 - 120 / 195))
    assert (first.peak_live, first.activation_bytes) == (2, (3 + 3) * 10 * 4)
    assert (second.peak_live, second.activation_bytes) == (1, 3 * 2 * 4)
    # both stages fit into 80 bytes, the whole network does not
    assert (first.weight_bytes_loaded, second.weight_bytes_loaded) == (80, 48)
    assert (found.serial_weight_bytes, found.serial_weight_bytes_loaded) == (128, 4 * 128)
    assert (found.schedule, found.microbatches, found.cache_bytes) == ("1f1b", 4, 80)


@pytest.mark.parametrize(
    ("cache", "ranks", "serial"),
    [(0, [320, 192], 512), (47, [320, 192], 512), (48, [320, 48], 512), (79, [320, 48], 512), (128, [80, 48], 128)],
)
def test_weights_are_loaded_once_or_once_per_microbatch(cache, ranks, serial):
    found = of(two_layers(), (3,), "gpipe", 2, 4, 10, cache=cache)
    assert [own.weight_bytes_loaded for own in found.ranks] == ranks
    assert found.serial_weight_bytes_loaded == serial


def test_loaded():
    assert [loaded(100, 8, cache) for cache in (0, 99, 100, 101)] == [800, 800, 100, 100]
    assert loaded(100, 1, 0) == loaded(100, 1, 100) == 100


def test_an_unknown_cache():
    found = of(two_layers(), (3,), "gpipe", 2, 4, 10)
    assert [own.weight_bytes_loaded for own in found.ranks] == [None, None]
    assert found.cache_bytes is found.serial_weight_bytes_loaded is None


def test_interleaved_has_several_stages_on_a_rank():
    """Stages 0 and 2 are on rank 0; all its activations at their peak, counted in its program."""
    network = networks.MLP((8,), 4, hidden=(8, 6, 6))
    found = of(network, (8,), "interleaved", 2, 2, 5, ["fc2", "fc3", "fc4"])
    first, second = found.ranks
    assert (first.stages, second.stages) == ((0, 2), (1, 3))
    assert first.layers == (("flatten", "fc1", "relu1"), ("fc3", "relu3"))
    assert second.layers == (("fc2", "relu2"), ("fc4",))
    assert (first.parameters, second.parameters) == (72 + 42, 54 + 28)
    assert (first.multiply_adds, second.multiply_adds) == (5 * (64 + 36), 5 * (48 + 24))
    # rank 0: 0F0 0F1 2F0 2F1 and then backwards; microbatches of 3 and 2 samples
    assert (first.peak_live, first.activation_bytes) == (4, 4 * 5 * (3 * 8 + 2 * 6))
    # rank 1: 1F0 1F1 3F0 3B0 3F1 ...: all but one of microbatch 1's
    assert (second.peak_live, second.activation_bytes) == (3, 4 * (5 * 2 * 6 + 3 * 4))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["lenet5_small", "alexnet_small", "vgg_small"])
def test_the_ranks_together_are_the_network(schedule, name):
    """Layers, parameters and multiply-adds; layers of branches count for the stage that has the branches."""
    shape = networks.NETWORKS[name].input_shape or (3, 32, 32)
    network = networks.create(name, shape, 10)
    facts = cost_of(network, shape, 7)
    plan = with_messages(make(schedule, 2, 4))
    cut = cut_stages(network, shape, plan.stages)
    found = pipeline_cost(facts, cut, plan, 0)
    layers = dict(pair for own in found.ranks for pair in zip(own.stages, own.layers))
    assert [layer for stage in sorted(layers) for layer in layers[stage]] == list(network._modules)
    assert sum(own.parameters for own in found.ranks) == network.parameter_count()
    assert sum(own.multiply_adds for own in found.ranks) == 7 * facts.multiply_adds
    assert sum(own.weight_bytes_loaded for own in found.ranks) == found.serial_weight_bytes_loaded
    for own in found.ranks:
        modules = [network._modules[name] for names in own.layers for name in names]
        assert own.parameters == sum(module.parameter_count() for module in modules)
        if schedule != "interleaved":
            per_sample = sum(
                passed.activations for passed in facts.layers if passed.name.split(".")[0] in own.layers[0]
            )
            assert own.activation_bytes == 4 * per_sample * sum(shares(7, 4)[: own.peak_live])


def test_branches_belong_to_the_stage_that_has_them():
    """Layers inside have names of their own, like 1.0.0, and stay together."""
    towers = nn.Branches(nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(5, 4))
    found = of(nn.Sequential(nn.Linear(3, 5), towers), (3,), "gpipe", 2, 1, 1)
    assert [own.parameters for own in found.ranks] == [20, 2 * 24]
    assert [own.multiply_adds for own in found.ranks] == [15, 2 * 20]


def test_refused():
    network = two_layers()
    facts, plan = cost_of(network, (3,), 4), make("1f1b", 2, 2)
    with pytest.raises(InputError, match="1f1b has 2 stages, but the network is cut into 1"):
        pipeline_cost(facts, cut_stages(network, (3,), 1), plan)
    with pytest.raises(InputError, match="cache_bytes -1: must be at least 0"):
        pipeline_cost(facts, cut_stages(network, (3,), 2), plan, -1)

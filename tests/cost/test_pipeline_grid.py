"""A pipeline whose layers are split: its ranks' shares agree with the pipeline alone and with the splits alone."""

import dataclasses

import pytest

from parallel_dl import networks, nn
from parallel_dl.cost import RankCost, cost_of, cut_stages, grid_of, pipeline_cost, shares_of
from parallel_dl.partition import shares as even_shares
from parallel_dl.schedule import make
from parallel_dl.splits import plan


def grid(network, shape, pp, mp, samples, splits=None, schedule="1f1b", microbatches=4, cache=None, starts=None):
    """(the pipeline alone, the shares alone, both together)."""
    facts, planned = cost_of(network, shape, samples), plan(network, shape, mp, splits)
    steps = make(schedule, pp, microbatches)
    stages = cut_stages(network, shape, steps.stages, starts)
    alone = pipeline_cost(facts, stages, steps, cache)
    return alone, shares_of(planned, samples), grid_of(facts, alone, stages, steps, planned)


CASES = [
    ("lenet5", None, "1f1b"),
    ("lenet5", {"features": "rows"}, "gpipe"),
    ("lenet5", {"features": "samples", "classifier": "output"}, "1f1b"),
    ("lenet5", {"features": "samples"}, "pipedream"),
    ("mlp_deep", None, "interleaved"),
    ("mlp_deep", {"fc4": "input", "fc6": "samples"}, "zb-h1"),
    ("alexnet", {"features": "filters", "classifier": "samples"}, "1f1b"),
]


@pytest.mark.parametrize("mp", [1, 2, 3])
@pytest.mark.parametrize(("name", "splits", "schedule"), CASES)
def test_totals_agree_with_either_alone(name, splits, schedule, mp):
    """Of a rank's number in its stage: the stages together have, do and send what the splits alone say."""
    shape, samples = networks.NETWORKS[name].input_shape or (1, 8, 8), 13
    network = networks.create(name, shape, 10)
    alone, divided, found = grid(network, shape, 2, mp, samples, splits if mp > 1 else {}, schedule, cache=99_999)
    assert [own.rank for own in found.ranks] == list(range(2 * mp))
    assert [(own.pipe, own.model) for own in found.ranks] == [(pipe, model) for pipe in range(2) for model in range(mp)]
    for model, total in enumerate(found.shares.totals):
        own = [one.share for one in found.ranks if one.model == model]
        assert sum(own[1:], own[0]) == total
    assert sum(one.work for one in found.shares.totals) == sum(one.work for one in divided.totals)
    assert sum(one.values_forward for one in found.shares.totals) == sum(one.values_forward for one in divided.totals)
    assert [one.parameters for one in found.shares.totals] == [one.parameters for one in divided.totals]
    for own in found.ranks:
        stage = alone.ranks[own.pipe]
        assert (own.stages, own.layers, own.peak_live) == (stage.stages, stage.layers, stage.peak_live)
        if mp == 1:
            of_rank = {field.name: getattr(own, field.name) for field in dataclasses.fields(RankCost)}
            assert RankCost(**of_rank) == stage
            assert own.share.messages == 0
        elif splits is not None and set(splits.values()) == {"samples"}:
            assert own.parameters == stage.parameters
    for pipe, stage in enumerate(alone.ranks):
        work = sum(own.multiply_adds for own in found.ranks if own.pipe == pipe)
        in_full = sum(layer.done == "every rank" for layer in found.shares.layers)
        assert work == stage.multiply_adds or (in_full and work > stage.multiply_adds)


def test_one_microbatch_is_the_splits_alone():
    network = networks.create("lenet5", (1, 28, 28), 10)
    for splits in (None, {"features": "samples", "classifier": "output"}, {"features": "2x2"}):
        _, divided, found = grid(network, (1, 28, 28), 1, 4, 10, splits, microbatches=1)
        assert found.shares == divided
        assert [own.share for own in found.ranks] == divided.totals


def test_numbers_by_hand():
    """Ten samples in microbatches of 4, 3 and 3, along the samples: 2 + 2, 2 + 1 and 2 + 1 of them."""
    network = nn.Sequential(
        conv=nn.Conv2d(1, 3, 3), flat=nn.Flatten(), fc1=nn.Linear(12, 7), act=nn.ReLU(), fc2=nn.Linear(7, 5)
    )
    splits = {"features": "samples", "fc2": "output"}
    assert even_shares(10, 3) == [4, 3, 3]
    _, _, found = grid(network, (1, 4, 4), 2, 2, 10, splits, microbatches=3, cache=600, starts=["fc2"])
    first, second, third, last = found.ranks
    # kernels 27 + 3, fc1 84 + 7: on both ranks, for 6 and 4 samples; their gradients are summed once
    assert [own.parameters for own in found.ranks] == [121, 121, 8 * 3, 8 * 2]
    assert [own.multiply_adds for own in found.ranks] == [
        *(n * (27 * 4 + 84) for n in (6, 4)),
        *(10 * 7 * n for n in (3, 2)),
    ]
    assert [own.share.work for own in (first, second)] == [n * (27 * 4 + 84 + 7) for n in (6, 4)]
    for own in (first, second):
        assert (own.share.messages, own.share.values_forward, own.share.values_backward) == (1, 0, 121)
    # at the boundary each has its samples' 7 values: the same shape comes back
    assert [(own.between.messages, own.between.values_forward) for own in (first, second)] == [(3, 6 * 7), (3, 4 * 7)]
    assert [(own.between.messages, own.between.values_backward) for own in (third, last)] == [(3, 6 * 7), (3, 4 * 7)]
    # fc2: an all-gather of the samples forward, a reduce-scatter backward; two all-reduces of the loss, 3 values each
    assert [own.share.messages for own in (third, last)] == [3 * (1 + 1 + 2)] * 2
    assert [own.share.values_forward for own in (third, last)] == [4 * 7 + 30, 6 * 7 + 30]
    assert [own.share.values_backward for own in (third, last)] == [4 * 7, 6 * 7]
    # two microbatches are alive in the first stage, of 2 + 2 and 2 + 1 samples of 12 + 12 + 7 + 7 values
    assert [own.activation_bytes for own in found.ranks] == [4 * 4 * 38, 4 * 3 * 38, 4 * 4 * 3, 4 * 4 * 2]
    assert [own.weight_bytes_loaded for own in found.ranks] == [4 * 121, 4 * 121, 96, 64]
    assert [(own.idle, own.peak_live) for own in found.ranks[:2]] == [(found.ranks[0].idle, 2)] * 2


def test_an_asynchronous_schedule_sums_after_each_microbatch():
    network = nn.Sequential(fc1=nn.Linear(4, 6), act=nn.Tanh(), fc2=nn.Linear(6, 3))
    ways = {"fc1": "samples", "fc2": "samples"}
    for schedule, times in (("1f1b", 1), ("pipedream", 5)):
        _, _, found = grid(network, (4,), 2, 2, 20, ways, schedule, microbatches=5)
        assert [(own.share.messages, own.share.values) for own in found.ranks] == [
            *[(times, times * 30)] * 2,
            *[(times, times * 21)] * 2,
        ]
        assert [(one.messages, one.values) for one in found.shares.gradients] == [(2 * times, 51 * times)] * 2

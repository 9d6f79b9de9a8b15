"""Shares of a plan's ranks: work adds up exactly, every way by hand, and what AlexNet's towers send."""

import random

import pytest

from parallel_dl import networks, nn
from parallel_dl.cost import cost_of, shares_of
from parallel_dl.splits import plan


def shares(network, size, ranks, splits=None, samples=1):
    """{layer: its shares}, after what holds for every plan was checked; see `require_exact`."""
    planned = plan(network, size, ranks, splits)
    found = shares_of(planned, samples)
    require_exact(cost_of(network, size, samples), planned, found)
    return {layer.name: layer for layer in found.layers}


def require_exact(facts, planned, found):
    """Parts add up to the whole layer; what every rank does in full, each of them does in full."""
    assert [layer.name for layer in found.layers] == [layer.name for layer in facts.layers]
    for whole, layer in zip(facts.layers, found.layers):
        work = [share.work for share in layer.shares]
        assert [share.rank for share in layer.shares] == list(range(planned.ranks))
        assert min(work) >= 0
        if layer.done == "every rank":
            assert work == [whole.work] * planned.ranks, layer.name
            assert [share.parameters for share in layer.shares] == [whole.parameters] * planned.ranks
        else:
            assert sum(work) == whole.work, layer.name
    for share in found.totals:
        assert share.parameters == planned.parameters(share.rank)
        assert share.work == sum(layer.shares[share.rank].work for layer in found.layers)


def work(layer):
    return [share.work for share in layer.shares]


def parameters(layer):
    return [share.parameters for share in layer.shares]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_work_of_the_shipped_networks_adds_up(name, ranks):
    size = networks.NETWORKS[name].input_shape or (1, 8, 8)
    network = networks.create(name, size, 10)
    found = shares(network, size, ranks, samples=3)
    assert not any(parameter.is_filled for parameter in network.parameters())
    if ranks == 1:
        assert {layer.done for layer in found.values()} == {"every rank"}
        assert {share.messages for layer in found.values() for share in layer.shares} == {0}


def test_alexnet_on_two_ranks():
    """Of the towers: weights and work halved; where they meet, half of the channels or features crosses over."""
    size = (3, 224, 224)
    network = networks.create("alexnet")
    found = shares_of(plan(network, size, 2), samples=128)
    sent = {layer.name: layer.shares for layer in found.layers if layer.shares[0].messages}
    values = {"conv3": 128 * 13 * 13, "fc6": 128 * 36, "fc7": 2048, "fc8": 2048}
    assert values["conv3"] == 21632
    assert values["fc6"] == 4608
    assert list(sent) == list(values)
    for name, (first, second) in sent.items():
        assert (first.messages, first.values_forward, first.values_backward) == (
            2,
            128 * values[name],
            first.values // 2,
        )
        assert (first.messages, first.values) == (second.messages, second.values)
    assert [(one.messages, one.values_forward, one.values_backward) for one in found.loss] == [(2, 128 * 3, 0)] * 2
    assert [total.messages for total in found.totals] == [2 * 4 + 2] * 2
    facts = cost_of(network, size, 128)
    assert [2 * total.work for total in found.totals] == [facts.work] * 2
    assert [2 * total.parameters for total in found.totals] == [facts.parameters] * 2


@pytest.mark.parametrize(
    ("layer", "size", "ranks", "way", "expected", "held"),
    [
        # work of one sample and parameters by rank, by hand
        (nn.Linear(10, 7), (10,), 3, "output", [30, 20, 20], [33, 22, 22]),
        (nn.Linear(10, 7), (10,), 3, "input", [28, 21, 21], [28 + 7, 21 + 7, 21 + 7]),
        (nn.Linear(10, 7), (10,), 3, "output:whole", [30, 20, 20], [33, 22, 22]),
        (nn.Linear(10, 2), (10,), 3, "output", [10, 10, 0], [11, 11, 0]),
        (nn.Conv2d(4, 6, 3, bias=True), (4, 7, 8), 4, "filters", [60 * 36, 60 * 36, 30 * 36, 30 * 36], None),
        (nn.Conv2d(4, 6, 3), (4, 7, 8), 3, "channels", [6 * 30 * 18, 6 * 30 * 9, 6 * 30 * 9], None),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 7, 8), 2, "towers", [90 * 18] * 2, None),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 7, 8), 3, "towers", [90 * 18, 90 * 18, 0], None),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 7, 8), 4, "filters", [60 * 18, 60 * 18, 30 * 18, 30 * 18], None),
        # of 5 x 6 outputs: the tiles' own, whatever rows they need from others
        (nn.Conv2d(4, 6, 3), (4, 7, 8), 2, "rows", [6 * 18 * 36, 6 * 12 * 36], [222, 222]),
        (nn.Conv2d(4, 6, 3), (4, 7, 8), 4, "columns", [6 * 10 * 36, 6 * 10 * 36, 6 * 5 * 36, 6 * 5 * 36], None),
        (nn.Conv2d(4, 6, 3), (4, 7, 8), 4, "2x2", [6 * 9 * 36, 6 * 9 * 36, 6 * 6 * 36, 6 * 6 * 36], None),
        (nn.Conv2d(4, 6, 3), (4, 4, 8), 3, "rows", [6 * 6 * 36, 6 * 6 * 36, 0], None),
        # 4 rows of windows on 9 rows of the image: an image row counts once, where most of its result is
        (nn.MaxPool2d(3, 2), (4, 9, 9), 2, "rows", [4 * 4 * 9, 4 * 5 * 9], [0, 0]),
        (nn.AvgPool2d(3, 2), (4, 9, 9), 4, "2x2", [4 * 16, 4 * 20, 4 * 20, 4 * 25], None),
        (nn.MaxPool2d(2), (1, 9, 8), 8, "rows", [16, 16, 16, 24, 0, 0, 0, 0], None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_ways(layer, size, ranks, way, expected, held):
    found = shares(nn.Sequential(layer=layer), size, ranks, {"layer": way}, samples=5)["layer"]
    assert work(found) == [5 * one for one in expected]
    assert (found.way, found.done) == (way, way)
    if held is not None:
        assert parameters(found) == held


def test_layers_that_follow():
    """After 5 filters on two ranks, and after 5 rows: everything in proportion, until something needs it whole."""

    def network():
        return nn.Sequential(
            conv=nn.Conv2d(2, 5, 3, padding=1),
            bn=nn.BatchNorm2d(5),
            lrn=nn.LocalResponseNorm(3),
            relu=nn.ReLU(),
            pool=nn.AvgPool2d(1),
            drop=nn.Dropout(),
            all=nn.GlobalAvgPool2d(),
            flat=nn.Flatten(),
            norm=nn.LayerNorm(5),
            fc=nn.Linear(5, 2),
        )

    following = ("bn", "lrn", "relu", "pool", "drop", "all")
    found = shares(network(), (2, 5, 4), 2, {"conv": "filters"})
    assert all(work(found[name]) == [3 * 20, 2 * 20] for name in following)
    assert [parameters(found[name]) for name in ("conv", "bn")] == [[57, 38], [6, 4]]
    assert [found[name].done for name in (*following, "flat")] == ["follows"] * 7
    found = shares(network(), (2, 5, 4), 2, {"conv": "rows"})
    assert all(work(found[name]) == [5 * 12, 5 * 8] for name in following)
    assert parameters(found["bn"]) == [10, 10]
    assert [found[name].done for name in following] == ["follows"] * 6
    assert [found[name].done for name in ("flat", "norm", "fc")] == ["every rank"] * 3
    assert [work(found[name]) for name in ("norm", "fc")] == [[5, 5], [10, 10]]
    assert {found[name].way for name in (*following, "flat", "norm", "fc")} == {None}


def test_every_rank_computes_layers_that_are_not_split():
    found = shares(nn.Sequential(a=nn.Linear(4, 6), b=nn.ReLU(), c=nn.Linear(6, 2)), (4,), 2, {"c": "input"})
    assert [layer.done for layer in found.values()] == ["every rank", "every rank", "input"]
    assert [work(layer) for layer in found.values()] == [[24, 24], [6, 6], [6, 6]]


def branches(join):
    deep = nn.Sequential(fc=nn.Linear(6, 8), all=nn.Branches(nn.Identity(), nn.ReLU()), last=nn.Linear(8, 4))
    towers = nn.Branches(deep=deep, wide=nn.Linear(6, 4), flat=nn.Linear(6, 4), join=join)
    return nn.Sequential(split=towers, fc=nn.Linear(4 if join == "sum" else 12, 2))


@pytest.mark.parametrize("join", ["sum", "concatenate"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_branches_of_ranks(join, ranks):
    """Only its owner runs a branch; of the sum, 4 values x 2 additions, each addition is one rank's."""
    found = shares(branches(join), (6,), ranks, {"split": "towers"})
    owners = {1: (0, 0, 0), 2: (0, 0, 1), 3: (0, 1, 2), 4: (0, 1, 2)}[ranks]
    for owner, name in zip(owners, ("deep.fc", "wide", "flat")):
        layer = found[f"split.{name}"]
        assert (layer.way, layer.done) == (None, f"rank {owner}")
        assert work(layer) == [(48 if name == "deep.fc" else 24) * (rank == owner) for rank in range(ranks)]
    assert work(found["split.deep.all"]) == [8] + [0] * (ranks - 1)
    added = {1: [2], 2: [1, 1], 3: [0, 1, 1], 4: [0, 1, 1, 0]}[ranks]
    assert work(found["split"]) == [4 * one * (join == "sum") for one in added]
    assert found["split"].done == "towers"


@pytest.mark.parametrize(
    ("ways", "done", "join"),
    [
        (("output", "output"), "follows", [14 * 2, 14 * 1]),
        (("output", "input"), "every rank", [14 * 3] * 2),
        (("input", "input"), "every rank", [14 * 3] * 2),
    ],
)
def test_branches_that_all_ranks_run(ways, done, join):
    """Where both end in slices the sum is one of slices; otherwise every rank adds up whole ones."""
    network = nn.Sequential(both=nn.Branches(a=nn.Linear(6, 3), b=nn.Linear(6, 3)))
    found = shares(network, (6,), 2, {"both.a": ways[0], "both.b": ways[1]}, samples=14)
    assert (found["both"].way, found["both"].done, work(found["both"])) == (None, done, join)


def test_what_a_pair_sends():
    """Output and input, as a pair: one all-reduce of y forward, one of x's gradient backward."""
    network = nn.Sequential(
        first=nn.Linear(8, 6), up=nn.Linear(6, 10), relu=nn.ReLU(), down=nn.Linear(10, 4), last=nn.Linear(4, 5)
    )
    found = shares(network, (8,), 2, {"up": "output", "down": "input"}, samples=7)
    sent = {name: [(s.messages, s.values_forward, s.values_backward) for s in at.shares] for name, at in found.items()}
    nothing = [(0, 0, 0)] * 2
    assert sent == {
        "first": nothing,
        "up": [(1, 0, 7 * 6)] * 2,
        "relu": nothing,
        "down": [(1, 7 * 4, 0)] * 2,
        "last": nothing,
    }
    assert not any(
        share.messages for share in shares_of(plan(network, (8,), 2, {"up": "output", "down": "input"})).loss
    )


def test_values_that_do_not_depend_on_the_samples():
    """Gradients of a convolution's weights, which every rank has, are summed once a step."""
    network = nn.Sequential(conv=nn.Conv2d(2, 5, 3, padding=1))
    for samples in (1, 100):
        found = shares_of(plan(network, (2, 6, 4), 2, {"conv": "rows"}), samples)
        # the network's input is cut on the spot; the output is gathered; kernels and biases are one message
        first = found.layers[0].shares[0]
        assert (first.messages, first.values_forward, first.values_backward) == (1, samples * 5 * 3 * 4, 0)
        assert [(one.messages, one.values) for one in found.gradients] == [(1, 2 * 5 * 9 + 5)] * 2
        assert found.totals[0].values_backward == 2 * 5 * 9 + 5


def test_the_loss_of_whole_scores_sends_nothing():
    network = nn.Sequential(fc=nn.Linear(8, 6))
    cases = (({"fc": "output"}, True, 2), ({"fc": "output"}, False, 0), ({"fc": "output:whole"}, True, 0))
    for splits, split_output, sent in (*cases, ({"fc": "input"}, True, 0)):
        found = shares_of(plan(network, (8,), 2, splits, split_output), samples=10)
        assert [(share.messages, share.values) for share in found.loss] == [(sent, 15 * sent)] * 2
        assert found.totals[0].messages == sent + found.layers[0].shares[0].messages
    assert shares_of(plan(network, (8,), 1, {"fc": "output"})).totals[0].messages == 0


def test_convolution_and_pooling_of_any_geometry():
    """Kernel, stride, padding and dilation at random: nothing is counted twice, and nobody works for nothing."""
    draw = random.Random(1)
    for _ in range(300):
        groups = draw.choice((1, 1, 2))
        size = (2 * draw.randint(1, 3), draw.randint(9, 14), draw.randint(9, 14))
        convolution = nn.Conv2d(
            size[0],
            2 * draw.randint(1, 3),
            (draw.randint(1, 3), draw.randint(1, 3)),
            stride=draw.randint(1, 3),
            padding=draw.randint(0, 2),
            dilation=draw.randint(1, 2),
            groups=groups,
        )
        kernel = draw.randint(1, 2)
        pool = nn.MaxPool2d(kernel, stride=draw.randint(1, 3), padding=draw.randint(0, kernel // 2))
        network = nn.Sequential(conv=convolution, pool=pool)
        ranks = draw.randint(1, 8)
        ways = ["filters", "channels" if groups == 1 else "towers", "rows", "columns", "rows-columns"]
        planned = plan(network, size, ranks, {"conv": draw.choice(ways)})
        if draw.random() < 0.3:
            planned = plan(network, size, ranks, {"conv": planned.splits["conv"], "pool": draw.choice(ways[2:])})
        found = shares_of(planned)
        require_exact(cost_of(network, size), planned, found)
        for step, layer in zip(planned.steps, found.layers):
            for rank, share in enumerate(layer.shares):
                makes = 0 not in step.division.output.shape(rank, (1, *step.output))
                assert makes or not share.work, (network, size, planned.splits)

"""Plans from shapes alone: names and groups, what is refused and what is valid instead, defaults, windows of tiles."""

import numpy as np
import pytest

from parallel_dl import networks, nn, splits
from parallel_dl.convolution.geometry import Axis
from parallel_dl.errors import InputError
from parallel_dl.mesh import Invariant, MeshShape, Placement, Shard, even, near_square, slices
from parallel_dl.splits import plan
from parallel_dl.splits.tiles import windows


def images():
    return nn.Sequential(
        conv1=nn.Conv2d(2, 4, 3, padding=1),
        relu1=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        conv2=nn.Conv2d(4, 6, 3, groups=2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(24, 8),
        relu2=nn.ReLU(),
        fc2=nn.Linear(8, 3),
    )


SHAPE = (2, 8, 8)


def branches(join="sum"):
    return nn.Sequential(
        conv=nn.Conv2d(2, 3, 1),
        both=nn.Branches(a=nn.Conv2d(3, 3, 1), b=nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), join=join),
        flat=nn.Flatten(),
    )


def ways(ranks, given, build=images, shape=SHAPE):
    """Name of a layer -> its way, of those that have one."""
    return {step.name: str(step.way) for step in plan(build(), shape, ranks, given).steps if step.way is not None}


def refusal(ranks, given, build=images, shape=SHAPE, **options):
    with pytest.raises(InputError) as raised:
        plan(build(), shape, ranks, given, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


# -- names ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("alias", "name"),
    [("column", "output"), ("row", "input"), ("column:whole", "output:whole"), ("grid", "rows-columns")],
)
def test_aliases(alias, name):
    layer = "conv1" if alias == "grid" else "fc1"
    assert ways(2, {layer: alias}) == {layer: name}
    assert plan(images(), SHAPE, 2, {layer: alias}).splits == {layer: name}


def test_groups():
    assert ways(2, {"features": "rows"}) == {"conv1": "rows", "conv2": "rows"}  # pooling follows
    assert ways(2, {"features": "rows", "classifier": "output"}) == {
        "conv1": "rows",
        "conv2": "rows",
        "fc1": "output",
        "fc2": "output",
    }


def test_a_layer_of_its_own_counts_more_than_its_group():
    given = {"conv2": "filters", "features": "rows", "pool": "columns"}
    assert ways(2, given) == {"conv1": "rows", "pool": "columns", "conv2": "filters"}


def test_a_group_is_for_those_that_can():
    assert ways(2, {"features": "towers"}) == {"conv2": "towers"}
    assert ways(2, {"features": "channels"}) == {"conv1": "channels"}


def nested():
    inner = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 4, 1)))
    return nn.Sequential(body=inner, classifier=nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 3)))


def test_names_of_sequentials_are_groups():
    given = {"body": "rows", "body.1": "columns", "body.1.0": "filters", "classifier": "input"}
    assert ways(2, given, nested, (2, 2, 2)) == {
        "body.0": "rows",
        "body.1.0": "filters",
        "body.1.1": "columns",
        "classifier.1": "input",
        "classifier.2": "input",
    }


def test_the_order_of_the_splits_is_nothing():
    given = {"body.1.0": "filters", "body.1": "columns", "body": "rows"}
    assert ways(2, given, nested, (2, 2, 2)) == ways(2, dict(reversed(given.items())), nested, (2, 2, 2))


def test_branches_are_split_as_such_or_as_a_group():
    assert ways(2, {"both": "towers"}, branches) == {"both": "towers"}
    assert ways(2, {"both": "rows"}, branches) == {"both.a": "rows", "both.b.0": "rows"}
    assert [step.owner for step in plan(branches(), SHAPE, 2, {"both": "towers"}).steps] == [None, 0, 1, 1, None, None]


def test_grids():
    assert ways(6, {"conv1": "2x3"}) == {"conv1": "2x3"}
    shapes = [(1, 1), (2, 1), (3, 1), (2, 2), (5, 1), (3, 2), (7, 1), (4, 2)]
    assert [near_square(ranks) for ranks in range(1, 9)] == shapes
    (step, *_) = plan(images(), SHAPE, 6, {"conv1": "2x3"}).steps
    grid = MeshShape(rows=2, columns=3)
    assert step.after == Placement.on(grid, rows=Shard(2, (4, 4)), columns=Shard(3, (3, 3, 2)))
    assert step.after.shape(5, (7, 4, 8, 8)) == (7, 4, 4, 2)
    assert [step.after.mesh.index(5, axis) for axis in grid] == [1, 2]


# -- refusals ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"fc3": "output"},
            "split fc3=output: there is no layer fc3; did you mean fc2? "
            "expected one of conv1, pool, conv2, fc1, fc2, features, classifier",
        ),
        (
            {"fc1": "filters"},
            "split fc1=filters: a Linear cannot be split that way; did you mean fc1=output? "
            "expected one of output, input, samples",
        ),
        (
            {"fc1": "outputs"},
            "split fc1=outputs: a Linear cannot be split that way; did you mean fc1=output? "
            "expected one of output, input, samples",
        ),
        (
            {"fc1": "channels"},
            "split fc1=channels: a Linear cannot be split that way; did you mean fc1=input? "
            "expected one of output, input, samples",
        ),
        (
            {"fc1": "input:whole"},
            "split fc1=input:whole: a Linear cannot be split that way; did you mean fc1=input? "
            "expected one of output, input, samples",
        ),
        (
            {"fc1": "output:half"},
            "split fc1=output:half: a Linear cannot be split that way; did you mean fc1=output? "
            "expected one of output, input, samples",
        ),
        (
            {"conv1": "column"},
            "split conv1=column: a Conv2d cannot be split that way; did you mean conv1=filters? "
            "expected one of filters, channels, rows, columns, rows-columns, samples",
        ),
        (
            {"conv1": "row"},
            "split conv1=row: a Conv2d cannot be split that way; did you mean conv1=channels? "
            "expected one of filters, channels, rows, columns, rows-columns, samples",
        ),
        (
            {"conv2": "channels"},
            "split conv2=channels: a Conv2d of 2 groups cannot be split that way; did you mean conv2=filters? "
            "expected one of filters, towers, rows, columns, rows-columns, samples",
        ),
        (
            {"pool": "column"},
            "split pool=column: a MaxPool2d cannot be split that way; did you mean pool=columns? "
            "expected one of rows, columns, rows-columns, samples",
        ),
        (
            {"relu2": "output"},
            "split relu2=output: a ReLU follows its input's placement; use relu2=samples, or fc1=output before it",
        ),
        (
            {"conv1": "2x2"},
            "split conv1=2x2: 2 x 2 tiles do not fit 3 ranks; use rows, columns, rows-columns or a product like 3x1",
        ),
        (
            {"features": "2x2"},
            "split features=2x2: 2 x 2 tiles do not fit 3 ranks; use rows, columns, rows-columns or a product like 3x1",
        ),
        (
            {"features": "output"},
            "split features=output: features has no layer that can be split that way; "
            "expected one of channels, columns, filters, rows, rows-columns, samples, towers",
        ),
        (
            {"classifier": "across"},
            "split classifier=across: classifier has no layer that can be split that way; "
            "expected one of input, output, samples",
        ),
        (
            {"fc1": "output:split", "fc2": "output"},
            "split fc1=output:split: leaves its output split, but fc2 needs it whole; "
            "use fc1=output, which gathers it, or fc2=input with it",
        ),
        (
            {"conv1": "filters:split", "conv2": "rows"},
            "split conv1=filters:split: leaves its output split, but conv2 needs other slices of it; "
            "use conv1=filters, which moves it",
        ),
        ({1: "output"}, "split 1=output: the name of a layer is a string, like '0' or 'fc1'"),
        ([("fc1", "output")], "are a dictionary of layers and ways"),
    ],
)
def test_refusals(given, message):
    assert message in refusal(3, given)


def test_refusals_of_other_networks():
    relu = lambda: nn.Sequential(relu=nn.ReLU(), fc=nn.Linear(3, 3))  # noqa: E731
    assert refusal(2, {"relu": "output"}, relu, (3,)).endswith("a ReLU follows its input's placement; use relu=samples")
    inside = refusal(2, {"both": "towers", "both.a": "rows"}, branches)
    assert inside == (
        "split both.a=rows: it is in a branch that a single rank runs, because of both=towers; use one of the two"
    )
    text = refusal(2, {"fc": "output:split"}, lambda: nn.Sequential(fc=nn.Linear(3, 3)), (5, 3))
    assert text == (
        "split fc=output:split: its input (5, 3) has several axes, and slices of the last are not left split; "
        "use fc=output"
    )
    assert "there is no layer features" in refusal(2, {"features": "output"}, relu, (3,))
    assert refusal(2, None, lambda: nn.Linear(3, 3), (3,)) == "a Linear alone cannot be split: put it into a Sequential"
    assert refusal(2, None, images, 8).startswith("input_shape 8: is the shape of one sample")


def test_own_module_is_refused_by_name():
    class Mine(nn.Module):
        def forward(self, x):
            return x

    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(super().forward(x))

    for own in (Mine, lambda: Twice(3, 3)):
        text = refusal(2, {}, lambda own=own: nn.Sequential(first=nn.Linear(3, 3), own=own()), (3,))
        assert text.startswith("layer own: what a ")
        assert "expected a layer of parallel_dl.nn, or one that defines output_shape" in text


def test_a_loss_that_needs_all_scores_refuses_an_output_left_split():
    text = refusal(2, {"fc2": "output:split"}, split_output=False)
    assert text == ("split fc2=output:split: leaves its output split, but the loss needs it whole; use fc2=output")
    assert plan(images(), SHAPE, 2, {"fc2": "output"}, split_output=False).output == WHOLE
    assert plan(images(), SHAPE, 2, {"fc2": "output:split"}).output == sliced(2, 1)


def test_tied_weights_are_cut_alike():
    def tied():
        network = nn.Sequential(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
        network[1].replace("weight", network[0].weight)
        return network

    for given in ({"a": "output", "b": "input"}, {"a": "output"}):
        text = refusal(2, given, tied, (4,))
        assert text == "a.weight and b.weight are one weight, but would be cut differently: split both alike"
    assert ways(2, {"a": "output", "b": "output"}, tied, (4,))


def test_one_layer_in_two_places_is_cut_alike():
    """Also what has no weights: running statistics that are cut in one place, and whole in the other."""

    def twice():
        norm = nn.BatchNorm1d(4, affine=False)
        return nn.Sequential(a=nn.Linear(4, 4), one=norm, b=nn.Linear(4, 4), two=norm)

    text = refusal(2, {"a": "output"}, twice, (4,))
    assert text.startswith("one.running_mean and two.running_mean are one buffer, but would be cut differently")
    weights = plan(twice(), (4,), 2, {"a": "output", "b": "output"}).weights()
    assert weights["one.running_var"] == weights["two.running_var"] == line(Shard(0, (2, 2)))


# -- placements ----------------------------------------------------------------------------------------------------
def line(state, ranks=2):
    return Placement(MeshShape(model=ranks), (state,))


WHOLE = line(Invariant())


def sliced(*sizes):
    return line(Shard(1, sizes), len(sizes))


def rows(*sizes):
    return line(Shard(2, sizes), len(sizes))


def placements(given, build=images, shape=SHAPE, ranks=2):
    return {step.name: step.after for step in plan(build(), shape, ranks, given).steps}


def test_from_placement_to_placement():
    assert placements({"conv1": "rows", "conv2": "filters", "fc1": "input"}) == {
        "conv1": rows(4, 4),
        "relu1": rows(4, 4),
        "pool": rows(2, 2),
        "conv2": sliced(3, 3),
        "flatten": sliced(12, 12),
        "fc1": WHOLE,
        "relu2": WHOLE,
        "fc2": WHOLE,
    }


def test_an_output_input_pair_leaves_no_move_between():
    steps = {step.name: step for step in plan(images(), SHAPE, 3, {"fc1": "output", "fc2": "input"}).steps}
    assert steps["fc1"].after == steps["relu2"].after == sliced(3, 3, 2)
    assert steps["relu2"].arrive == steps["fc2"].arrive == ()
    assert steps["fc2"].weights == {"weight": line(Shard(1, (3, 3, 2)), 3)}  # and the bias is invariant


def test_ends_of_branches():
    whole = placements({"both.a": "rows"}, branches)
    assert (whole["both.a"], whole["both.b.0"], whole["both"]) == (rows(4, 4), WHOLE, WHOLE)
    assert placements({"both": "rows"}, branches)["both"] == rows(4, 4)
    assert placements({"both": "filters"}, branches)["both"] == sliced(2, 1)
    joined = lambda: branches("concatenate")  # noqa: E731
    assert placements({"both": "filters"}, joined)["both"] == WHOLE
    assert placements({"both": "towers"}, joined)["both"] == sliced(3, 3)
    assert placements({"both": "towers"}, branches)["both"] == WHOLE


def test_one_rank_sends_nothing():
    assert list(splits.messages(plan(images(), SHAPE, 1, {"features": "rows", "fc1": "output"}), 0)) == []


# -- defaults ------------------------------------------------------------------------------------------------------
SMALL = [
    (name, shape)
    for name in ("mlp", "mlp_deep", "lenet5_small", "alexnet_small", "vgg_small")
    for shape in ((1, 8, 8), (3, 13, 9))
]
FULL = [(name, networks.NETWORKS[name].input_shape) for name in ("lenet5", "alexnet", "alexnet_one_tower", "vgg16")]


@pytest.mark.parametrize(("name", "shape"), SMALL + FULL)
def test_default_plans_of_all_networks(name, shape):
    """Every weight is on one rank, or on all; the ranks' pieces are side by side; each layer begins where one ended."""
    assert set(networks.NETWORKS) == {name for name, _ in SMALL + FULL}
    network = networks.create(name, shape, 10)
    weights = dict(network.named_parameters())
    count = network.parameter_count()
    for ranks in range(1, 9):
        planned = plan(network, shape, ranks)
        shards = {name: place.states[0] for name, place in planned.weights().items() if place.has(Shard)}
        if ranks == 1:
            assert (planned.splits, shards, planned.parameters(0)) == ({}, {}, count)
            continue
        split = {
            layer.name for layer in nn.layer_shapes(network, shape) if isinstance(layer.layer, nn.Linear | nn.Conv2d)
        }
        assert set(planned.splits) == split
        for weight, shard in shards.items():
            assert len(shard.sizes) == ranks
            assert sum(shard.sizes) == weights[weight].shape[shard.axis]
        on_all = sum(weight.size for name, weight in weights.items() if name not in shards)
        assert sum(planned.parameters(rank) for rank in range(ranks)) == count + (ranks - 1) * on_all
        before = line(Invariant(), ranks)
        for step in planned.steps:
            assert step.before == before
            before = step.after
        assert planned.output == before


def test_defaults_by_name():
    two = ways(2, None, lambda: networks.create("alexnet"), (3, 224, 224))
    assert two == {
        "conv1": "filters",
        "conv2": "towers",
        "conv3": "filters",
        "conv4": "towers",
        "conv5": "towers",
        "fc6": "output",
        "fc7": "output",
        "fc8": "output",
    }
    three = ways(3, None, lambda: networks.create("alexnet"), (3, 224, 224))
    assert set(three.values()) == {"filters", "output"}
    lenet = ways(2, None, lambda: networks.create("lenet5"), (1, 28, 28))
    assert lenet == {"conv1": "rows", "conv2": "rows", "fc1": "output", "fc2": "input", "fc3": "output"}
    assert ways(2, None, branches) == {"conv": "rows", "both": "towers"}


# -- windows -------------------------------------------------------------------------------------------------------
def test_windows_hold_what_their_rows_need_and_no_more():
    """Row o of the result needs rows o stride - before + k dilation of the image, those beyond its ends being zeros."""
    draw = np.random.default_rng(4)
    for _ in range(1500):
        length, kernel, stride, before, after, dilation = (
            int(draw.integers(*ends)) for ends in ((1, 12), (1, 6), (1, 5), (0, 6), (0, 6), (1, 4))
        )
        axis = Axis(length, kernel, stride, before, after, dilation)
        if length + before + after < axis.extent:
            continue
        padded = [None] * before + list(range(length)) + [None] * after
        ranks = int(draw.integers(1, 9))
        for window, out in zip(windows(axis, even(axis.out, ranks)), slices(even(axis.out, ranks)), strict=True):
            assert window.out == out
            assert window.length == out.stop - out.start
            tile = [None] * window.before + list(range(length))[window.image] + [None] * window.after
            assert 0 <= window.image.start <= window.image.stop <= length
            if not window.length:
                assert tile == []
                continue
            assert len(tile) == (window.length - 1) * stride + axis.extent
            for row in range(window.length):
                needed = [padded[(out.start + row) * stride + tap * dilation] for tap in range(kernel)]
                assert [tile[row * stride + tap * dilation] for tap in range(kernel)] == needed


def test_tiles_of_a_pooling_by_hand():
    """9 rows, windows of 3, 2 apart, padding 1: 5 rows, of which 3 ranks have 2, 2 and 1."""
    found = windows(Axis(9, 3, 2, 1, 1, 1), even(5, 3))
    assert [(w.image, w.before, w.after) for w in found] == [
        (slice(0, 4), 1, 0),
        (slice(3, 8), 0, 0),
        (slice(7, 9), 0, 1),
    ]


def test_shares_of_a_layer_add_up_to_it():
    network = networks.create("alexnet")
    for ranks in (2, 3, 5, 8):
        planned = plan(network, (3, 224, 224), ranks)
        whole = {step.name: sum(p.size for p in step.layer.parameters()) for step in planned.steps}
        parts = [planned.layer_parameters(rank) for rank in range(ranks)]
        assert {name: sum(part[name] for part in parts) for name in whole} == whole
        assert sum(planned.parameters(rank) for rank in range(ranks)) == 60_965_224


def test_outputs_left_split_must_stay_split():
    """`:split` is refused wherever the slices would have to be moved."""
    linear, relu, identity = nn.Linear, nn.ReLU, nn.Identity
    for network, given in (
        (nn.Sequential(linear(6, 6), linear(6, 3)), {"0": "output:split"}),
        (nn.Sequential(linear(6, 6), relu(), linear(6, 3)), {"0": "output:split", "2": "output"}),
        (nn.Sequential(linear(6, 6), nn.Branches(identity(), linear(6, 6))), {"0": "output:split", "1": "towers"}),
        (nn.Sequential(nn.Branches(linear(6, 6), identity())), {"0.0": "output:split"}),
        (nn.Sequential(nn.Branches(identity(), linear(6, 6))), {"0.1": "output:split"}),
    ):
        with pytest.raises(InputError, match="output:split: leaves its output split, but"):
            plan(network, (6,), 2, given)
    with pytest.raises(InputError, match="but the loss needs it whole"):
        plan(nn.Sequential(linear(6, 3), relu()), (6,), 2, {"0": "output:split"}, split_output=False)
    with pytest.raises(InputError, match="a sum of branches is whole; use 0=towers"):
        plan(nn.Sequential(nn.Branches(linear(6, 6), identity())), (6,), 2, {"0": "towers:split"})
    assert plan(nn.Sequential(linear(6, 6), relu(), linear(6, 3)), (6,), 2, {"0": "output:split", "2": "input"}).ranks


def test_inner_groups_count_more_in_either_order():
    network = nn.Sequential(features=nn.Sequential(a=nn.Sequential(nn.Linear(6, 6)), b=nn.Linear(6, 3)))
    given = {"features.a": "input", "features": "output"}
    for order in (given, dict(reversed(given.items()))):
        ways = {step.name: str(step.way) for step in plan(network, (6,), 2, order).steps}
        assert ways == {"features.a.0": "input", "features.b": "output"}
    with pytest.raises(InputError, match="the name of a layer is a string"):
        plan(network, (6,), 2, {0: "output"})


def test_partial_gradients_are_those_of_weights_that_train():
    """Frozen weights send nothing; that they may be unfrozen is known."""
    ways = {"fc1": "samples", "fc2": "output"}
    network = nn.Sequential(fc1=nn.Linear(6, 5), fc2=nn.Linear(5, 3))
    assert plan(network, (6,), 2, ways).partial_sizes() == {"fc1.weight": 30, "fc1.bias": 5}
    network.fc1.bias.requires_grad = False
    assert plan(network, (6,), 2, ways).partial_sizes() == {"fc1.weight": 30}
    network.fc1.weight.requires_grad = False
    found = plan(network, (6,), 2, ways)
    assert (found.partial_sizes(), found.has_partial) == ({}, True)
    assert not plan(network, (6,), 2, {"fc2": "output"}).has_partial

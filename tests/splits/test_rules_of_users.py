"""A rule of the user's own: what it leaves open is filled in, and what it says wrong is one line, before any rank."""

import dataclasses
import re

import numpy as np
import pytest

from parallel_dl import nn, splits
from parallel_dl.autograd import Tensor, abandon, ops, primitive
from parallel_dl.errors import InputError
from parallel_dl.mesh import MeshShape, reshard
from parallel_dl.model_parallel import parallelize
from parallel_dl.splits import Division, Invariant, Message, Partial, Placement, Replicated, Shard, Windows


class Scaled(nn.Module):
    """y = x W^T + b, with another forward pass than Linear's."""

    def __init__(self, features):
        super().__init__()
        self.features = features
        self.weight = nn.Parameter((features, features), nn.initializers.uniform(0.5))
        self.bias = nn.Parameter((features,), nn.initializers.uniform(0.5))

    def forward(self, x):
        return ops.linear(x, self.weight, self.bias)

    def output_shape(self, input_shape):
        return input_shape


def network(function, way="output"):
    """Three layers, the second of a class of its own with this rule."""
    kind = type("Own", (Scaled,), {"forward": Scaled.forward, "output_shape": Scaled.output_shape})
    splits.rule(kind, way)(function)
    return nn.Sequential(first=nn.Linear(5, 6), own=kind(6), last=nn.Linear(6, 3))


def plan_of(function, ranks=2):
    return splits.plan(network(function), (5,), ranks, {"own": "output"})


def by_output(site):
    weights = site.weights(Shard(0), "weight", "bias")
    return Division(site.on(Shard(1)), site.on(Replicated()), weights)


def test_sizes_that_are_left_open_are_even():
    step = plan_of(by_output, ranks=4).steps[1]
    assert step.division.output == step.after == Placement.on(MeshShape(model=4), model=Shard(1, (2, 2, 1, 1)))
    assert set(step.weights.values()) == {Placement.on(MeshShape(model=4), model=Shard(0, (2, 2, 1, 1)))}


def test_its_way_is_offered_and_applied_to_a_group():
    model = network(by_output, "gates")
    with pytest.raises(InputError, match="did you mean own=gates\\? expected one of gates, samples"):
        splits.plan(model, (5,), 2, {"own": "gate"})
    group = nn.Sequential(block=model, end=nn.Linear(3, 2))
    assert [str(step.way) for step in splits.plan(group, (5,), 2, {"block": "gates"}).steps][1] == "gates"


@pytest.mark.parametrize("way", ["row", "column", "rows", "2x1"])
def test_a_way_that_has_another_name_is_found(way):
    """An alias, and one of those that have one rule in the package."""
    registered = "rows-columns" if way == "2x1" else way
    model = network(by_output, registered)
    assert splits.plan(model, (5,), 2, {"own": way}).steps[1].after.has(Shard)


def test_messages_go_by_the_number_of_samples():
    def combining(site):
        said = by_output(site)
        return Division(
            said.output,
            said.input,
            said.weights,
            messages=lambda samples: [Message("forward", "all_reduce", 1, 3 * samples)],
        )

    sent = [message for name, message in splits.messages(plan_of(combining), 0, samples=7) if name == "own"]
    assert Message("forward", "all_reduce", 1, 21) in sent


def of(local=None, **states):
    """A rule that says this; otherwise what `by_output` says."""
    states = {"output": Shard(1), "input": Replicated(), "weight": Shard(0), "bias": Shard(0), **states}

    def said(site):
        output, taken, weight, bias = map(site.on, states.values())
        return Division(output, taken, {"weight": weight, "bias": bias}, local)

    return said


def raising(site):
    return site.layer.nothing


def refusing(site):
    raise InputError("needs an even number of features")


def of_a_name(site):
    return Division(site.on(Shard(1)), site.on(Replicated()), {"wieght": site.on(Shard(0))})


def without_weights(site):
    return Division(site.on(Shard(1)), site.on(Shard(1)))


WRONG = {
    "raises": (raising, r"AttributeError: 'Own' object has no attribute 'nothing'"),
    "refuses": (refusing, r"line \d+: needs an even number of features"),
    "returns nothing": (lambda site: None, "returns a value of type NoneType; expected a Division"),
    "a state": (lambda site: Division(Shard(1)), r"output is Shard\(axis=1, .*; expected a placement, site.on\(Shard"),
    "no placement": (
        lambda site: Division("all"),
        r"output is 'all'; expected a placement, like site.on\(Shard\(1\)\)",
    ),
    "other ranks": (lambda site: Division(Placement.on(MeshShape(model=5))), "output is placed on 5 ranks; expected 2"),
    "sizes": (
        of(output=Shard(1, (3, 2))),
        r"output is cut along axis 1 into \(3, 2\); expected 2 sizes that",
    ),
    "sizes of the weight": (
        of(weight=Shard(1, (6,))),
        r"weight weight is cut along axis 1 into \(6,\); expected 2 sizes",
    ),
    "axis": (of(output=Shard(2)), r"output is cut along axis 2, but it has axis 0, the samples, and then \(6,\)"),
    "axis of the weight": (of(bias=Shard(1)), r"weight bias is cut along axis 1, but it has shape \(6,\)"),
    "windows": (of(input=Windows(1, (slice(0, 9),))), "expected 2 slices of 6"),
    "a sum as input": (of(input=Partial()), "input is Partial; expected one of Invariant, Replicated, Shard, Windows"),
    "output not summed": (of(output=Replicated()), "output is Replicated; expected Invariant, Shard or Partial"),
    "name of a weight": (of_a_name, "no weight 'wieght'; did you mean weight[?] expected one of weight, bias"),
    "gradient of x": (of(input=Invariant()), "weight weight is cut, so the gradient of x is a summand on each rank"),
    "output whole": (
        of(output=Invariant()),
        "output is Invariant, but weight weight is cut; use a Shard",
    ),
    "gradient of a weight": (of(bias=Invariant()), "weight bias is whole on every rank, .* its gradient is a summand"),
    "no weights": (without_weights, "weight weight is whole on every rank"),
    "local maths": (of(local=lambda layer, x: x), r"local is called as local\(layer, x, position\)"),
}


@pytest.mark.parametrize(("function", "line"), WRONG.values(), ids=WRONG)
def test_what_a_rule_says_wrong_is_one_line(function, line):
    with pytest.raises(InputError, match=line) as refused:
        plan_of(function)
    text = str(refused.value)
    assert re.match(
        rf"layer own: rule {re.escape(function.__name__)}( \(|: ).*test_rules_of_users.py, line \d+", text
    ), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("kind", "way"), [("Linear", "output"), (3, None), (int, "output"), (nn.ReLU, "a b"), (nn.ReLU, "a:b")]
)
def test_what_cannot_be_registered(kind, way):
    with pytest.raises(InputError, match=r"^rule\("):
        splits.rule(kind, way)


@pytest.mark.ranks(2)
def test_a_part_of_another_shape_than_its_placement(comm):
    def whole(layer, x, position):
        return Tensor(np.zeros((len(x), 6)))

    model = network(of(local=whole)).initialize(seed=0)
    parallelize(model, comm, (5,), {"own": "output"})
    said = r"layer own: rule said .*: rank \d has an output of shape \(4, 6\); .* it is \(samples, 3\)"
    with pytest.raises(InputError, match=said):
        model(np.zeros((4, 5), np.float32))
    abandon()


@primitive
def less_the_mean(y, *, combine):
    """Over all ranks' features."""
    mean = combine(y.sum(axis=1, keepdims=True)) / 6
    return y - mean, (lambda g: g - combine(g.sum(axis=1, keepdims=True)) / 6,)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("what", ["combine", "reshard"])
@pytest.mark.parametrize("messages", [(), lambda samples: []], ids=["none", "an empty list"])
def test_what_the_local_maths_sends_has_to_be_stated(comm, what, messages):
    path = reshard(Placement.on(MeshShape(model=2), model=Shard(1)), Placement.on(MeshShape(model=2)), (1, 6))

    def local(layer, x, position):
        y = ops.linear(x, layer.weight, layer.bias)
        return less_the_mean(y, combine=position.combine) if what == "combine" else position.reshard(path, y)

    def unstated(site):
        return dataclasses.replace(by_output(site), local=local, messages=messages)

    model = network(unstated).initialize(seed=0)
    parallelize(model, comm, (5,), {"own": "output"})
    said = rf"layer own: rule unstated \(.*: its local maths uses position.{what}, but the rule does not say what that"
    with pytest.raises(InputError, match=said):
        model(np.zeros((4, 5), np.float32))
    abandon()


@pytest.mark.ranks(2)
def test_an_error_in_the_local_maths_names_the_rule(comm):
    def combining(layer, x, position):
        return position.combine(ops.linear(x, layer.weight))

    model = network(of(local=combining)).initialize(seed=0)
    parallelize(model, comm, (5,), {"own": "output"})
    with pytest.raises(TypeError, match="combine takes an array, inside a primitive, not a Tensor") as failed:
        model(np.zeros((4, 5), np.float32))
    abandon()
    assert failed.value.__notes__[0].startswith("in the local maths of layer own: rule said (")

"""A layer of the user's own: its shape said or measured, its work said or estimated, in stages and in split plans."""

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.cost import cost_of, operations, shares_of
from parallel_dl.cost.stages import cut_stages
from parallel_dl.errors import InputError
from parallel_dl.splits import plan


class Doubling(nn.Module):
    """(samples, n) -> (samples, 2n), with weights and counted calls."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter((2 * n, n), nn.initializers.uniform(0.1))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return Tensor(np.asarray(x)) @ self.weight.T


class Saying(Doubling):
    def output_shape(self, input_shape):
        return (2 * input_shape[0],)

    def operations(self, input_shape):
        return 1000 * input_shape[0]


class Lazy(nn.Module):
    def output_shape(self, input_shape):
        return list(input_shape)


def test_a_layer_is_measured_without_touching_it():
    network = nn.Sequential(first=nn.Linear(4, 3), own=Doubling(3), last=nn.Linear(6, 2))
    network.own.register_forward_hook(lambda *_: pytest.fail("a hook was called"))
    cut = cut_stages(network, (4,), 3)
    assert cut.inputs == ((4,), (3,), (6,))
    assert network.own.calls == 0
    assert not any(parameter.is_filled for parameter in network.parameters())


def test_what_it_says_is_taken():
    own = Saying(3)
    network = nn.Sequential(first=nn.Linear(4, 3), own=own, last=nn.Linear(6, 2))
    assert nn.output_shape(network, (4,)) == (2,)
    cost = cost_of(network, (4,), 5)
    assert [layer.work for layer in cost.layers] == [5 * 12, 5 * 3000, 5 * 12]
    assert cost.layers[1].depth == 9  # six values, each a sum of 500 terms
    assert own.calls == 0
    assert cut_stages(network, (4,), 2).as_text() == ["first", "own last"]


def test_work_is_estimated_by_weights_or_values():
    (passed,) = nn.layer_shapes(Doubling(3), (3,), measure=True)
    assert operations(passed).work == 18
    (passed,) = nn.layer_shapes(Lazy(), (3, 5))
    assert passed.output == (3, 5)
    assert (operations(passed).work, operations(passed).depth(4)) == (15, 1)


def test_stages_are_cut_by_the_work_that_is_said():
    layers = [Doubling(2), Doubling(4), Doubling(8)]
    assert cut_stages(nn.Sequential(*layers), (2,), 2).as_text() == ["0 1", "2"]  # 8 + 32 weights, 128
    heavy = Saying(2)
    assert cut_stages(nn.Sequential(heavy, *layers[1:]), (2,), 2).as_text() == ["0", "1 2"]


def test_what_cannot_be_measured_names_what_to_define():
    class Images(nn.Module):
        def forward(self, x):
            return x.reshape(1, 2, 99)

    class Mixing(nn.Module):
        def forward(self, x):
            return np.concatenate([x, x])

    with pytest.raises(InputError, match=r"^layer own: Images cannot be measured, .* define output_shape\(input_shape"):
        cut_stages(nn.Sequential(own=Images()), (4,), 1)
    with pytest.raises(InputError, match=r"^layer own: Mixing makes \(2, 4\) of one sample \(1, 4\), not \(1, \.\.\."):
        cut_stages(nn.Sequential(own=Mixing()), (4,), 1)
    with pytest.raises(InputError, match=r"or one that defines output_shape\(input_shape\)$"):
        nn.output_shape(nn.Sequential(own=Mixing()), (4,))


@pytest.mark.parametrize("said", [7, (2.5,), (-1,), None])
def test_a_shape_that_is_none(said):
    class Wrong(nn.Module):
        def output_shape(self, input_shape):
            return said

    with pytest.raises(InputError, match=r"Wrong\.output_shape\(\(4,\)\) gives .*; expected a tuple of lengths"):
        nn.output_shape(Wrong(), (4,))


@pytest.mark.parametrize("said", [1.5, -1, True, None])
def test_a_number_of_operations_that_is_none(said):
    class Wrong(Saying):
        def operations(self, input_shape):
            return said

    with pytest.raises(InputError, match=r"Wrong\.operations\(\(3,\)\) gives .*; expected a whole number, at least"):
        cost_of(nn.Sequential(Wrong(3)), (3,))


class Sums(Saying):
    """Says its depth, too."""

    def operations(self, input_shape):
        return nn.Operations(30, sums=(8, 3), multiply_adds=20, over_samples=True)


def test_its_depth_can_be_said():
    (layer,) = cost_of(nn.Sequential(Labelled(Sums(3))), (3,), samples=4).layers
    assert (layer.work, layer.depth, layer.multiply_adds) == (120, 3 + 2 + 2, 20)


class Labelled(nn.Sequential):
    """A plain sequence: its forward pass is the one that is inherited."""


class Tripling(Saying):
    """Overrides the forward pass of a layer that says its shape and its work."""

    def forward(self, x):
        return np.concatenate([x] * 3, axis=1)


def test_a_class_with_another_forward_pass_says_its_shape_and_work_anew():
    """What is inherited would be that of another computation."""
    with pytest.raises(InputError, match=r"^what a Tripling computes is not known here"):
        nn.output_shape(Tripling(3), (3,))
    (passed,) = nn.layer_shapes(Tripling(3), (3,), measure=True)
    assert (passed.output, operations(passed).work) == ((9,), 18)

    class Said(Tripling):
        def output_shape(self, input_shape):
            return (3 * input_shape[0],)

    assert nn.output_shape(Said(3), (3,)) == (9,)


class Shaped:
    """For classes to inherit from: it has no forward pass that it could mean."""

    def output_shape(self, input_shape):
        return input_shape


class Square(Shaped, nn.Module):
    def forward(self, x):
        return x * x


def test_what_a_class_without_a_forward_pass_says_is_meant_for_those_derived_from_it():
    assert nn.output_shape(nn.Sequential(Square(), nn.Flatten()), (3, 2)) == (6,)


def test_in_a_split_network_every_rank_does_it():
    network = nn.Sequential(first=nn.Linear(4, 3), own=Saying(3), last=nn.Linear(6, 2))
    made = plan(network, (4,), 2, {"first": "output", "last": "input"})
    assert "own.weight" not in made.weights()
    assert [step.name for step in made.steps] == ["first", "own", "last"]
    (shares,) = (layer.shares for layer in shares_of(made, 5).layers if layer.name == "own")
    assert [share.work for share in shares] == [5 * 3000] * 2

"""Branches: the network written out by hand, its gradients, names, and what does not fit."""

import functools

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor, gradcheck, ops
from parallel_dl.errors import InputError


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def towers(join):
    left = nn.Sequential(fc=nn.Linear(5, 4), tanh=nn.Tanh())
    return nn.Branches(left, nn.Linear(5, 4, bias=False), last=nn.Linear(5, 4), join=join).initialize(3, "float64")


def by_hand(join, x, w0, b0, w1, w2, b2):
    outputs = ops.tanh(ops.linear(x, w0, b0)), ops.linear(x, w1), ops.linear(x, w2, b2)
    if join == "sum":
        return (outputs[0] + outputs[1]) + outputs[2]
    return ops.concatenate(*outputs, axis=1)


class Some(nn.Module):
    """A part of its input."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, x):
        return x[self.kept]


@pytest.mark.parametrize("join", ["sum", "concatenate"])
def test_value_and_gradients_are_those_written_out_by_hand(join):
    network, x = towers(join), Tensor(random(6, 5), requires_grad=True)
    names = ["0.fc.weight", "0.fc.bias", "1.weight", "last.weight", "last.bias"]
    assert [name for name, _ in network.named_parameters()] == names
    weights = [Tensor(parameter.data.copy(), requires_grad=True) for parameter in network.parameters()]
    same_x = Tensor(x.data.copy(), requires_grad=True)
    found, expected = network(x), by_hand(join, same_x, *weights)
    np.testing.assert_array_equal(found.data, expected.data)
    assert found.shape == ((6, 4) if join == "sum" else (6, 12))
    g = random(*found.shape, seed=1)
    found.backward(g)
    expected.backward(g)
    for own, other in zip([x, *network.parameters()], [same_x, *weights]):
        np.testing.assert_allclose(own.grad, other.grad, rtol=1e-14)


@pytest.mark.parametrize("join", ["sum", "concatenate"])
def test_gradients_agree_with_differences(join):
    values = [parameter.data for parameter in towers(join).parameters()]

    def computed(x, *weights):
        network = towers(join)
        for (name, _), weight in zip(list(network.named_parameters()), weights):
            *path, last = name.split(".")
            setattr(functools.reduce(getattr, path, network), last, weight)
        return network(x)

    gradcheck(computed, random(3, 5), *values)


def test_a_residual_block():
    """Convolutions, and around them the input itself."""
    around = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
    block = nn.Branches(around, nn.Identity()).initialize(0, "float64")
    x = random(2, 2, 4, 3)
    np.testing.assert_array_equal(block(x).data, around(x).data + x)
    gradcheck(block, x)


def test_a_sum_goes_from_left_to_right():
    """In float32 (1e8 - 1e8) + 1 is 1, and 1e8 + (1 - 1e8) is 0."""
    x = np.array([[1e8, 1]], np.float32)
    first, second, third = (nn.Linear(2, 1, bias=False) for _ in range(3))
    for layer, weight in ((first, [1, 0]), (second, [-1, 0]), (third, [0, 1])):
        layer.weight.data[...] = weight
    assert nn.Branches(first, second, third)(x).item() == 1
    assert nn.Branches(first, third, second)(x).item() == 0


def test_modules_are_counted_and_named():
    network = nn.Branches(nn.Linear(2, 3), around=nn.Linear(2, 3))
    assert len(network) == 2
    assert list(network) == [network[0], network.around]
    assert repr(network).splitlines()[0] == "Branches(sum)  18 parameters"
    assert network.around.path("weight") == ("around.weight", network)


def test_dropout_in_a_branch_has_a_mask_of_its_own():
    network = nn.Branches(nn.Dropout(), nn.Dropout(), join="concatenate").initialize(0)
    left, right = np.split(network.set_position(0)(np.ones((4, 50), np.float32)).data, 2, axis=1)
    assert not np.array_equal(left, right)
    assert network.eval()(np.ones((4, 50), np.float32)).data.all()


def test_one_branch_is_the_branch_itself():
    x = random(3, 5)
    for join in ("sum", "concatenate"):
        one = nn.Branches(nn.Linear(5, 4), join=join).initialize(0, "float64")
        np.testing.assert_array_equal(one(x).data, one[0](x).data)


def test_an_empty_batch():
    assert towers("sum")(np.zeros((0, 5))).shape == (0, 4)
    assert towers("concatenate")(np.zeros((0, 5))).shape == (0, 12)


def test_what_is_refused_at_construction():
    with pytest.raises(InputError, match=r"^unknown join of branches 'sun': did you mean 'sum'\? expected one of conc"):
        nn.Branches(nn.ReLU(), join="sun")
    with pytest.raises(InputError, match=r"^unknown join of branches '1'"):
        nn.Branches(nn.ReLU(), join=1)
    with pytest.raises(InputError, match=r"^Branches\(\): needs at least one branch"):
        nn.Branches(join="sum")


@pytest.mark.parametrize(
    ("join", "kept", "said"),
    [
        (
            "sum",
            (slice(None), slice(1)),
            r"all \(4, 3, 2\), some \(4, 1, 2\): to be added up, they must have one shape",
        ),
        ("sum", (0,), r"all \(4, 3, 2\), some \(3, 2\): to be added up, they must have one shape"),
        ("concatenate", (slice(2),), r"all \(4, 3, 2\), some \(2, 3, 2\): to be concatenated, they must be equal but"),
        (
            "concatenate",
            (slice(None), 0),
            r"all \(4, 3, 2\), some \(4, 2\): to be concatenated, they must be equal but",
        ),
        (
            "concatenate",
            (..., slice(1)),
            r"all \(4, 3, 2\), some \(4, 3, 1\): to be concatenated, they must be equal but",
        ),
    ],
)
def test_outputs_that_do_not_fit(join, kept, said):
    """Also those that NumPy would broadcast."""
    network = nn.Sequential(towers=nn.Branches(all=nn.Identity(), some=Some(kept), join=join))
    with pytest.raises(InputError, match=rf"^layer towers: got an input of shape \(4, 3, 2\), of which .* make {said}"):
        network(np.zeros((4, 3, 2), np.float32))


def test_without_a_second_axis_nothing_is_concatenated():
    with pytest.raises(InputError, match=r"make 0 \(4,\), 1 \(4,\): to be concatenated"):
        nn.Branches(nn.Identity(), nn.Identity(), join="concatenate")(np.zeros(4))

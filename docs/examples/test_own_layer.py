"""A layer, an optimizer and a collective of your own on several ranks: `pytest test_own_layer.py` runs the tests."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.autograd import Tensor, primitive
from parallel_dl.equivalence import assert_adjoint, assert_equivalent
from parallel_dl.layout import Layout


class Gate(nn.Module):
    """y = x * sigmoid(x W^T): (samples, features) -> (samples, features)."""

    def __init__(self, features):
        super().__init__()
        self.features = features
        self.weight = nn.Parameter((features, features), nn.initializers.uniform(0.5))

    def forward(self, x):
        x = x if isinstance(x, Tensor) else Tensor(x)
        return x * (x @ self.weight.T).sigmoid()

    def output_shape(self, input_shape):  # optional: of one sample
        return input_shape

    def operations(self, input_shape):  # optional: of one sample, for even stages
        return self.features * self.features + 2 * self.features


def network():
    return nn.Sequential(nn.Linear(6, 8), Gate(8), nn.Dropout(0.2), Gate(8), nn.Linear(8, 3))


def batch():
    random = np.random.default_rng(0)
    return random.standard_normal((9, 6)), random.integers(0, 3, 9)


@pytest.mark.ranks(2)
def test_data_parallel(comm):
    assert_equivalent(network, Layout(dp=comm.size), batch(), steps=3, comm=comm)


@pytest.mark.ranks(2)
def test_in_stages(comm):
    assert_equivalent(network, Layout(pp=2, microbatches=2), batch(), steps=3, comm=comm)


@pytest.mark.ranks(2)
def test_between_split_layers(comm):
    layout = Layout(mp=2, split={"0": "output", "4": "input"})
    assert_equivalent(network, layout, batch(), steps=3, comm=comm)


class Sign(optim.Optimizer):
    """Moves each weight by its momentum, but by no more than the rate."""

    rule = "sign"

    def state_of(self, options):
        return ("momentum",)

    def _update(self, options, rate, updates, weights, gradient, momentum):
        momentum *= 0.9
        momentum += 0.1 * gradient
        weights -= rate * momentum / (np.abs(momentum) + 0.1)


@pytest.mark.ranks(2)
def test_own_rule(comm):
    make_optimizer = lambda parameters: Sign(parameters, lr=0.01)  # noqa: E731
    assert_equivalent(network, Layout(dp=comm.size), batch(), steps=3, make_optimizer=make_optimizer, comm=comm)


@primitive(collective=True)
def differences(x, *, comm):
    """What this rank has less what the rank before it has; the ranks are in a circle."""
    return x - comm.shift(x, 1), (lambda g: g - comm.shift(g, -1),)


@pytest.mark.ranks(3)
def test_differences(comm):
    assert_adjoint(lambda x: differences(x, comm=comm), (4, 2), comm)

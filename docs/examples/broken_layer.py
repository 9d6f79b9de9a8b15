"""Two mistakes, and how tests report them: run it as `pytest broken_layer.py`. Both tests fail."""

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import primitive
from parallel_dl.equivalence import assert_adjoint, assert_equivalent
from parallel_dl.layout import Layout


class Centre(nn.Module):
    """Subtracts the mean of the samples, which differs between a share and the whole batch."""

    def forward(self, x):
        return x - x.mean(axis=0, keepdims=True)


@pytest.mark.ranks(2)
def test_centre(comm):
    def network():
        return nn.Sequential(nn.Linear(6, 8), Centre(), nn.Linear(8, 3))

    random = np.random.default_rng(0)
    batch = random.standard_normal((10, 6)), random.integers(0, 3, 10)
    assert_equivalent(network, Layout(dp=2), batch, comm=comm)


@primitive(collective=True)
def differences(x, *, comm):
    """As in test_own_layer.py, but backward shifts in the same direction as forward."""
    return x - comm.shift(x, 1), (lambda g: g - comm.shift(g, 1),)


@pytest.mark.ranks(3)
def test_differences(comm):
    assert_adjoint(lambda x: differences(x, comm=comm), (4, 2), comm)

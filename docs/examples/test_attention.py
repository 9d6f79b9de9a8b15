"""Your own attention block, equal to the serial run on two ranks: run it as `pytest test_attention.py`."""

import pytest

from parallel_dl import nn
from parallel_dl.autograd import ops
from parallel_dl.equivalence import assert_equivalent
from parallel_dl.layout import Layout


class Attention(nn.Module):
    """Self-attention with a skip connection: (samples, positions, features) -> the same shape."""

    def __init__(self, features, heads):
        super().__init__()
        self.heads, self.width = heads, features // heads
        self.inputs, self.output = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x):
        samples, positions, _ = x.shape
        split = ops.reshape(self.inputs(x), shape=(samples, positions, 3, self.heads, self.width))
        q, k, v = (ops.transpose(split[:, :, part], axes=(0, 2, 1, 3)) for part in range(3))
        scores = ops.matmul(q, ops.transpose(k, axes=(0, 1, 3, 2))) / self.width**0.5
        mixed = ops.matmul(ops.softmax(scores), v)  # (samples, heads, positions, width)
        return self.output(ops.reshape(ops.transpose(mixed, axes=(0, 2, 1, 3)), shape=x.shape)) + x

    def output_shape(self, input_shape):
        return input_shape


def network():
    """Eight positions of six features, three classes."""
    blocks = (Attention(8, 2), nn.LayerNorm(8), Attention(8, 2))
    return nn.Sequential(nn.Linear(6, 8), *blocks, nn.Flatten(), nn.Linear(64, 3))


LAYOUTS = {
    "replicas": Layout(dp=2),
    "stages": Layout(pp=2, microbatches=3),
    "beside split layers": Layout(mp=2, split={"5": "output"}),
}


@pytest.mark.ranks(2)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_attention(comm, layout):
    assert_equivalent(network, layout, 13, steps=3, comm=comm, input_shape=(8, 6))

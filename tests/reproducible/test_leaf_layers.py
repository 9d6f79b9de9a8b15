"""Layers over leaves: the ordinary layers up to rounding, right gradients, and the same bits for each rank's part."""

from types import SimpleNamespace

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor, gradcheck, ops
from parallel_dl.partition import LEAVES, share
from parallel_dl.reproducible import Leaves, add_bias, losses
from parallel_dl.reproducible.convolution import ConvolutionInLeaves, conv2d
from parallel_dl.reproducible.linear import LinearInLeaves, linear
from parallel_dl.reproducible.reductions import layer_norm, pixel_mean

random = np.random.default_rng(0)
CONVOLUTIONS = [  # channels, filters, groups, settings
    (1, 6, 1, {"stride": 1, "padding": 2, "dilation": 1}),
    (9, 16, 1, {"stride": 2, "padding": 1, "dilation": 1}),
    (8, 12, 2, {"stride": 1, "padding": 1, "dilation": 2}),
    (6, 9, 3, {"stride": (1, 2), "padding": (0, 1), "dilation": 1}),
]


def convolution(channels, filters, groups, settings):
    return ConvolutionInLeaves(Leaves.even(channels), Leaves.even(filters), groups, settings)


def piece(array, *parts):
    """A weight as a rank has it: a Parameter knows its piece."""
    tensor = nn.Parameter(array.shape, nn.initializers.constant(0.0), parts or None)
    tensor.data = array[parts].copy()
    return tensor


def computed(layer, x, weight, bias=None):
    """(result, gradients of x, weight and bias) for a loss that weighs each element of the result."""
    x = Tensor(x, requires_grad=True)
    y = layer(x, weight) if bias is None else layer(x, weight, bias)
    weights = np.cos(np.arange(y.data.size)).reshape(y.shape).astype(y.dtype)
    (y * weights).sum().backward()
    return y.data, x.grad, weight.grad, None if bias is None else bias.grad


def close(ours, theirs):
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("samples", "inputs", "outputs"), [(5, 19, 11), (1, 8, 16), (3, 2, 3), (0, 9, 9), (7, 1, 1)])
def test_linear(samples, inputs, outputs):
    layer = LinearInLeaves(Leaves.even(inputs), Leaves.even(outputs))
    x, w, b = random.random((samples, inputs)), random.random((outputs, inputs)), random.random(outputs)
    close(computed(layer, x, piece(w), piece(b)), computed(ops.linear, x, piece(w), piece(b)))
    if samples:
        own = {"inputs": layer.inputs.within(), "outputs": layer.outputs.within()}
        gradcheck(linear, x, w, b, **own)


def test_linear_of_several_axes():
    layer = LinearInLeaves(Leaves.even(5), Leaves.even(4))
    x, w, b = random.random((2, 3, 5)), random.random((4, 5)), random.random(4)
    close(computed(layer, x, piece(w), piece(b)), computed(ops.linear, x, piece(w), piece(b)))


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case):
    channels, filters, groups, settings = case
    x, w = random.random((3, channels, 7, 6)), random.random((filters, channels // groups, 3, 3))
    b, layer = random.random(filters), convolution(*case)

    def ordinary(x, w, b):
        return ops.conv2d(x, w, b, groups=groups, method="direct", **settings)

    close(computed(layer, x, piece(w), piece(b)), computed(ordinary, x, piece(w), piece(b)))
    if channels > 6:
        x = x[:1, :, :5, :4].copy()
    gradcheck(conv2d, x, w, b, groups=layer.own_groups(SimpleNamespace(piece=None)), **settings)


def test_sums_inside_of_a_sample():
    x = random.random((2, 3, 3, 5))
    np.testing.assert_allclose(pixel_mean(Tensor(x)).data, x.mean((2, 3), keepdims=True), rtol=1e-14)
    gradcheck(pixel_mean, x)
    gradcheck(layer_norm, x.transpose(3, 0, 1, 2), random.random((3, 3)), random.random((3, 3)), dimensions=2, eps=1e-5)


def test_add_bias():
    gradcheck(add_bias, random.random((3, 4)), random.random(4))
    gradcheck(add_bias, random.random((2, 3, 2, 2)), random.random(3))


def tree(parts):
    if len(parts) == 1:
        return parts[0]
    return tree([a + b for a, b in zip(parts[::2], parts[1::2])])


def same(ours, theirs):
    assert np.ascontiguousarray(ours).tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (37, 21), (3, 10)])
def test_parts_of_linear_are_the_bits_of_the_whole(ranks, inputs, outputs, dtype):
    layer = LinearInLeaves(Leaves.even(inputs), Leaves.even(outputs))
    x, w = random.standard_normal((9, inputs)).astype(dtype), random.standard_normal((outputs, inputs)).astype(dtype)
    g = random.standard_normal((9, outputs)).astype(dtype)
    y, dx, dw = run(layer, x, piece(w), g)
    rows = [share(outputs, ranks, rank, LEAVES) for rank in range(ranks)]
    by_output = [run(layer, x, piece(w, own), g[:, own]) for own in rows]
    same(np.concatenate([part[0] for part in by_output], 1), y)
    same(tree([part[1] for part in by_output]), dx)
    same(np.concatenate([part[2] for part in by_output], 0), dw)
    columns = [share(inputs, ranks, rank, LEAVES) for rank in range(ranks)]
    by_input = [run(layer, x[:, own], piece(w, slice(0, outputs), own), g) for own in columns]
    same(tree([part[0] for part in by_input]), y)
    same(np.concatenate([part[1] for part in by_input], 1), dx)
    same(np.concatenate([part[2] for part in by_input], 1), dw)


def run(layer, x, weight, g):
    x = Tensor(x, requires_grad=True)
    y = layer(x, weight)
    y.backward(g)
    return y.data, x.grad, weight.grad


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_parts_of_convolutions_are_the_bits_of_the_whole(ranks, case):
    channels, filters, groups, _ = case
    layer, deep, wide = convolution(*case), channels // groups, filters // groups
    x = random.standard_normal((3, channels, 7, 6)).astype("float32")
    w = random.standard_normal((filters, deep, 3, 3)).astype("float32")
    g = np.ones_like(layer(x, piece(w)).data)
    g *= random.standard_normal(g.shape).astype("float32")
    y, dx, dw = run(layer, x, piece(w), g)
    sums, values, weights = [], [], []
    for rank in range(ranks):
        own = share(filters, ranks, rank, LEAVES)
        seen = slice(0, channels)
        if groups > 1:
            seen = slice(own.start // wide * deep, -(-own.stop // wide) * deep if own.stop > own.start else 0)
        value, of_x, of_weight = run(layer, x[:, seen], piece(w, own), g[:, own])
        padded = np.zeros_like(x)
        if own.start < own.stop:
            padded[:, seen] = of_x
        sums.append(padded)
        values.append(value)
        weights.append(of_weight)
    same(np.concatenate(values, 1), y)
    same(np.concatenate(weights, 0), dw)
    same(tree(sums), dx)
    if groups == 1:
        parts = [share(channels, ranks, rank, LEAVES) for rank in range(ranks)]
        by_channel = [run(layer, x[:, own], piece(w, slice(0, filters), own), g) for own in parts]
        same(tree([part[0] for part in by_channel]), y)
        same(np.concatenate([part[1] for part in by_channel], 1), dx)
        same(np.concatenate([part[2] for part in by_channel], 1), dw)


@pytest.mark.parametrize(
    ("loss", "ordinary"), [(losses.cross_entropy, nn.cross_entropy), (losses.logistic_loss, nn.logistic_loss)]
)
@pytest.mark.parametrize(("samples", "classes"), [(7, 10), (1, 3), (0, 9), (16, 1)])
def test_losses(loss, ordinary, samples, classes):
    scores, targets = random.standard_normal((samples, classes)), random.integers(0, classes, samples)
    results = []
    for function in (loss, ordinary):
        x = Tensor(scores, requires_grad=True)
        value = function(x, targets, 11)
        value.backward()
        results.append((value.data, x.grad))
    close(*results)


def test_losses_refuse_what_the_ordinary_ones_do():
    scores = random.random((3, 4))
    with pytest.raises(ValueError, match="targets must be integers"):
        losses.cross_entropy(scores, np.zeros(3))
    with pytest.raises(ValueError, match="do not fit"):
        losses.cross_entropy(scores, np.zeros(2, int))
    with pytest.raises(ValueError, match=r"must be in 0\.\.3"):
        losses.cross_entropy(scores, np.array([0, 4, 1]))
    with pytest.raises(ValueError, match="do not fit"):
        losses.logistic_loss(scores, np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
        losses.logistic_loss(scores, np.full((3, 4), 2.0))

"""Layers over leaves: the ordinary layers up to rounding, right gradients, and the same bits for each rank's part."""

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor, gradcheck, ops
from parallel_dl.partition import LEAVES, share
from parallel_dl.reproducible import Leaves
from parallel_dl.reproducible import losses as over_leaves
from parallel_dl.reproducible.convolution import conv2d
from parallel_dl.reproducible.linear import add_bias, linear, own_leaves
from parallel_dl.reproducible.network import LayerLeaves
from parallel_dl.reproducible.reductions import batch_norm, layer_norm, pixel_mean, squares_of_rows
from parallel_dl.reproducible.summation import groups_of

random = np.random.default_rng(0)
CONVOLUTIONS = [  # channels, filters, groups, settings
    (1, 6, 1, {"stride": 1, "padding": 2, "dilation": 1}),
    (9, 16, 1, {"stride": 2, "padding": 1, "dilation": 1}),
    (8, 12, 2, {"stride": 1, "padding": 1, "dilation": 2}),
    (6, 9, 3, {"stride": (1, 2), "padding": (0, 1), "dilation": 1}),
]
TOGETHER = pytest.mark.parametrize("together", [True, False])
LEAVES_OF_SAMPLES = 2


def of_leaves(weight):
    """A weight for each leaf of samples: their gradients are added up."""
    return None if weight is None else ops.add(ops.reshape(weight, shape=(1, *weight.shape)), ZEROS[weight.data.ndim])


ZEROS = {ndim: np.zeros((LEAVES_OF_SAMPLES, *[1] * ndim), "float32") for ndim in range(1, 5)}


def fully_connected(inputs, outputs, together=True):
    """As `ops.linear`, for weights that know their piece."""
    leaves = Leaves.even(outputs), Leaves.even(inputs)

    def layer(x, weight, bias=None):
        own_outputs, own_inputs = own_leaves(weight, *leaves)
        static = {"inputs": own_inputs, "outputs": own_outputs, "together": together}
        return linear(x, of_leaves(weight), of_leaves(bias), **static)

    return layer


def convolution(channels, filters, groups, settings, together=True):
    """As `ops.conv2d`, for weights that know their piece."""
    leaves = LayerLeaves(Leaves.even(channels), Leaves.even(filters), groups)

    def layer(x, weight, bias=None):
        whole = slice(0, filters), slice(0, channels // groups)
        rows, columns = (*(weight.piece or ()), *whole[len(weight.piece or ()) :])[:2]
        seen = x.shape[1] // (channels // groups) if groups > 1 else 1
        own = groups_of(leaves, rows, columns, seen)
        return conv2d(x, of_leaves(weight), of_leaves(bias), groups=own, together=together, **settings)

    return layer


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
@TOGETHER
def test_linear(samples, inputs, outputs, together):
    layer = fully_connected(inputs, outputs, together)
    x, w, b = random.random((samples, inputs)), random.random((outputs, inputs)), random.random(outputs)
    close(computed(layer, x, piece(w), piece(b)), computed(ops.linear, x, piece(w), piece(b)))
    if samples:
        gradcheck(linear, x, np.stack([w]), np.stack([b]), **whole(inputs, outputs), together=together)


def whole(inputs, outputs):
    return {"inputs": Leaves.even(inputs).within(), "outputs": Leaves.even(outputs).within()}


def test_linear_of_several_axes():
    layer = fully_connected(5, 4)
    x, w, b = random.random((2, 3, 5)), random.random((4, 5)), random.random(4)
    close(computed(layer, x, piece(w), piece(b)), computed(ops.linear, x, piece(w), piece(b)))


@TOGETHER
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case, together):
    channels, filters, groups, settings = case
    x, w = random.random((3, channels, 7, 6)), random.random((filters, channels // groups, 3, 3))
    b, layer = random.random(filters), convolution(*case, together)

    def ordinary(x, w, b):
        return ops.conv2d(x, w, b, groups=groups, method="direct", **settings)

    close(computed(layer, x, piece(w), piece(b)), computed(ordinary, x, piece(w), piece(b)))
    if channels > 6:
        x = x[:1, :, :5, :4].copy()
    leaves = LayerLeaves(Leaves.even(channels), Leaves.even(filters), groups)
    own = groups_of(leaves, slice(0, filters), slice(0, channels // groups), groups)
    gradcheck(conv2d, x, np.stack([w]), np.stack([b]), groups=own, together=together, **settings)


def test_sums_inside_of_a_sample():
    x = random.random((2, 3, 3, 5))
    np.testing.assert_allclose(pixel_mean(Tensor(x)).data, x.mean((2, 3), keepdims=True), rtol=1e-14)
    gradcheck(pixel_mean, x)
    weight, bias = random.random((2, 1, 3, 3))
    gradcheck(layer_norm, x.transpose(3, 0, 1, 2), weight, bias, leaves=1, dimensions=2, eps=1e-5)


def test_batch_norm():
    x, weight, bias = random.random((5, 3, 2, 2)), random.random((1, 3)), random.random((1, 3))
    seen = []
    settings = {"leaves": 1, "total": lambda sums: sums}
    gradcheck(batch_norm, x, weight, bias, **settings)
    value = batch_norm(x, weight, bias, observe=lambda *found: seen.append(found), **settings)
    expected = ops.batch_norm(x, weight[0], bias[0], observe=lambda *found: seen.append(found))
    np.testing.assert_allclose(value.data, expected.data, rtol=1e-12)
    close(*seen)
    gradcheck(batch_norm, random.random((4, 3)), **settings)


def test_add_bias():
    gradcheck(add_bias, random.random((3, 4)), random.random((1, 4)))
    gradcheck(add_bias, random.random((3, 2, 4)), random.random((1, 4)))
    gradcheck(add_bias, random.random((2, 3, 2, 2)), random.random((1, 3, 1, 1)))


OF_LEAVES = {
    "linear": (linear, (9,), ((4, 9), (4,)), {"together": True}),
    "large": (linear, (9,), ((4, 9), (4,)), {"together": False}),
    "rows": (linear, (3, 9), ((4, 9), (4,)), {"together": True}),
    "convolution": (conv2d, (9, 4, 4), ((4, 9, 3, 3), (4,)), {"stride": 1, "padding": 1, "dilation": 1}),
    "layer_norm": (layer_norm, (3, 4), ((3, 4), (3, 4)), {"dimensions": 2}),
    "add_bias": (add_bias, (3, 4), ((4,),), {}),
}


@pytest.mark.parametrize("samples", [1, 5, 8, 19])
@pytest.mark.parametrize("alone", [1, 2, 4])
@pytest.mark.parametrize("name", OF_LEAVES)
def test_leaves_computed_together_have_the_bits_of_each_alone(name, alone, samples):
    """In calls of all leaves, and of `alone` of them; the gradient of the result is the result itself."""
    operation, shape, weights, static = OF_LEAVES[name]
    x, *weights = (random.standard_normal(shape).astype("float32") for shape in ((samples, *shape), *weights))
    if operation is linear:
        static = static | whole(9, 4)
    elif operation is conv2d:
        leaves = LayerLeaves(Leaves.even(9), Leaves.even(4))
        static = static | {"groups": groups_of(leaves, slice(0, 4), slice(0, 9), 1), "together": True}

    def passed(x, leaves):
        given = [Tensor(np.broadcast_to(array, (leaves, *array.shape)), requires_grad=True) for array in weights]
        x = Tensor(x, requires_grad=True)
        y = operation(x, *given, **static, **({"leaves": leaves} if operation is layer_norm else {}))
        y.backward(y.data)
        return y.data, x.grad, *(tensor.grad for tensor in given)

    together = passed(x, LEAVES)
    calls = LEAVES // alone
    apart = [passed(x[share(samples, calls, call, LEAVES)], alone) for call in range(calls)]
    for ours, theirs in zip(together, zip(*apart)):
        same(np.concatenate(theirs), ours)


def tree(parts):
    if len(parts) == 1:
        return parts[0]
    return tree([a + b for a, b in zip(parts[::2], parts[1::2])])


def same(ours, theirs):
    assert np.ascontiguousarray(ours).tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (37, 21), (3, 10)])
@TOGETHER
def test_parts_of_linear_are_the_bits_of_the_whole(together, ranks, inputs, outputs, dtype):
    layer = fully_connected(inputs, outputs, together)
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
@TOGETHER
def test_parts_of_convolutions_are_the_bits_of_the_whole(together, ranks, case):
    channels, filters, groups, _ = case
    layer, deep, wide = convolution(*case, together), channels // groups, filters // groups
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
    ("loss", "ordinary"), [(over_leaves.cross_entropy, nn.cross_entropy), (over_leaves.logistic_loss, nn.logistic_loss)]
)
@pytest.mark.parametrize(("samples", "classes"), [(7, 10), (1, 3), (0, 9), (16, 1)])
def test_losses(loss, ordinary, samples, classes):
    scores, targets = random.standard_normal((samples, classes)), random.integers(0, classes, samples)
    results = []
    for function in (loss, ordinary):
        x = Tensor(scores, requires_grad=True)
        value = function(x, targets, 11) if function is ordinary else function(x, targets, 11, leaves=4)
        value.backward()
        results.append((value.data, x.grad))
    close(*results)


def test_losses_refuse_what_the_ordinary_ones_do():
    scores = random.random((3, 4))
    with pytest.raises(ValueError, match="targets must be integers"):
        over_leaves.cross_entropy(scores, np.zeros(3))
    with pytest.raises(ValueError, match="do not fit"):
        over_leaves.cross_entropy(scores, np.zeros(2, int))
    with pytest.raises(ValueError, match=r"must be in 0\.\.3"):
        over_leaves.cross_entropy(scores, np.array([0, 4, 1]))
    with pytest.raises(ValueError, match="do not fit"):
        over_leaves.logistic_loss(scores, np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
        over_leaves.logistic_loss(scores, np.full((3, 4), 2.0))


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("shape", [(9, 37), (5, 19, 3, 3)])
def test_squares_of_parts_are_the_bits_of_the_whole(ranks, shape):
    """Of a weight cut by its columns; rows are added up by themselves."""
    array, leaves = random.standard_normal(shape), Leaves.even(shape[1])
    whole = squares_of_rows(array, leaves.within())
    np.testing.assert_allclose(whole.sum(0), np.square(array).reshape(len(array), -1).sum(1), rtol=1e-14)
    parts = [share(shape[1], ranks, rank, LEAVES) for rank in range(ranks)]
    same(np.concatenate([squares_of_rows(array[:, own], leaves.within(own)) for own in parts]), whole)
    same(squares_of_rows(array[3:], leaves.within()), whole[:, 3:])

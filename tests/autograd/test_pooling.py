"""Pooling is what its definition says, also at ties, and in either order of memory."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_dl.autograd import Tensor, ops
from parallel_dl.errors import InputError

PAIR = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def poolings(draw, least_samples=0):
    """(x of few distinct values, so that there are ties, keyword arguments)."""
    kernel, stride = draw(PAIR), draw(PAIR)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    image = tuple(draw(st.integers(max(1, k - 2 * p), 9)) for k, p in zip(kernel, padding, strict=True))
    shape = (draw(st.integers(least_samples, 3)), draw(st.integers(1, 3)), *image)
    x = np.random.default_rng(draw(st.integers(0, 99))).integers(-2, 3, shape).astype(float)
    return x, {"kernel": kernel, "stride": stride, "padding": padding}


def windows(x, kernel, stride, padding):
    """(place in the result, places in the image that its window covers)."""
    rows, columns = (
        range((length + 2 * p - k) // s + 1)
        for length, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True)
    )
    for i, j in itertools.product(rows, columns):
        top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
        inside = [
            (row, column)
            for row, column in itertools.product(range(top, top + kernel[0]), range(left, left + kernel[1]))
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
        ]
        yield (i, j), inside


def expected(x, g_of, largest, **sizes):
    """Result and gradient, pixel by pixel; g_of is the gradient of the result."""
    y, dx = np.zeros_like(g_of), np.zeros_like(x)
    area = sizes["kernel"][0] * sizes["kernel"][1]
    for n, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
        for (i, j), inside in windows(x, **sizes):
            values = [x[n, c, row, column] for row, column in inside]
            if largest:
                y[n, c, i, j] = max(values)
                dx[(n, c, *inside[values.index(max(values))])] += g_of[n, c, i, j]
            else:
                y[n, c, i, j] = sum(values) / area
                for row, column in inside:
                    dx[n, c, row, column] += g_of[n, c, i, j] / area
    return y, dx


def in_rows(x):
    """The same values with the samples innermost in memory, as a convolution leaves them."""
    return np.ascontiguousarray(x.transpose(2, 1, 3, 0)).transpose(3, 1, 0, 2)


@pytest.mark.parametrize("largest", [True, False], ids=["max", "avg"])
@pytest.mark.parametrize("order", [np.array, in_rows])
@settings(max_examples=40, deadline=None)
@given(case=poolings())
def test_the_definition(largest, order, case):
    x, sizes = case
    leaf = Tensor(order(x), requires_grad=True)
    y = (ops.max_pool2d if largest else ops.avg_pool2d)(leaf, **sizes)
    g = np.random.default_rng(1).integers(-9, 10, y.shape).astype(float)
    y.backward(g)
    value, gradient = expected(x, g, largest, **sizes)
    np.testing.assert_allclose(y.data, value, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(leaf.grad, gradient, rtol=1e-12, atol=1e-12)
    assert np.argsort(y.data.strides).tolist() == np.argsort(np.empty_like(leaf.data, shape=y.shape).strides).tolist()


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@settings(max_examples=40, deadline=None)
@given(case=poolings(1))
def test_torch_agrees(name, case):
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'parallel_dl[bench]')")
    x, sizes = case
    leaf, other = Tensor(x, requires_grad=True), torch.from_numpy(x.copy()).requires_grad_()
    y = getattr(ops, name)(leaf, **sizes)
    theirs = getattr(torch.nn.functional, name)(other, sizes["kernel"], sizes["stride"], sizes["padding"])
    g = np.random.default_rng(2).standard_normal(y.shape)
    y.backward(g)
    theirs.backward(torch.from_numpy(g))
    np.testing.assert_allclose(y.data, theirs.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(leaf.grad, other.grad.numpy(), rtol=1e-12, atol=1e-12)


def test_of_equal_pixels_the_first_gets_the_gradient():
    x = Tensor(np.zeros((1, 1, 4, 4)), requires_grad=True)
    ops.max_pool2d(x, kernel=2).sum().backward()
    np.testing.assert_array_equal(x.grad[0, 0], np.kron(np.ones((2, 2)), [[1, 0], [0, 0]]))


def test_a_large_image_is_pooled_in_blocks():
    x = np.random.default_rng(3).standard_normal((4, 32, 64, 65))
    leaf = Tensor(in_rows(x), requires_grad=True)
    ops.max_pool2d(leaf, kernel=3, stride=2).sum().backward()
    value, gradient = ops.max_pool2d.__wrapped__(x, kernel=3, stride=2)
    np.testing.assert_array_equal(leaf.grad, gradient[0](np.ones_like(value)))
    np.testing.assert_array_equal(value[:, :, 30, 31], x[:, :, 60:63, 62:65].max(axis=(2, 3)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kernel": 6}, "a kernel of 6 x 6 is larger than the padded image of 5 x 4"),
        ({"kernel": 3, "padding": 2}, "padding 2 with a window of 3"),
        ({"kernel": 0}, "kernel 0: expected a whole number, at least 1"),
        ({"kernel": 2, "stride": 0}, "stride 0: expected a whole number, at least 1"),
    ],
)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_refusals(name, sizes, message):
    with pytest.raises(InputError) as error:
        getattr(ops, name)(np.zeros((1, 1, 5, 4)), **sizes)
    assert message in str(error.value)

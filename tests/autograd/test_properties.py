"""Reductions and shape operations against NumPy over random shapes, axes and indices; the adjoint of broadcasting."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parallel_dl.autograd import Tensor, ops
from parallel_dl.autograd.ops.elementwise import unbroadcast

repeatable = settings(max_examples=80, derandomize=True)

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
full_shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


def integers(shape, seed=0):
    """Distinct small integers as float64: their sums are exact."""
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return order.reshape(shape).astype(np.float64)


@st.composite
def shape_and_axes(draw, shapes):
    """A shape and None, one axis or a tuple of different ones, negative or not."""
    shape = draw(shapes)
    ndim = len(shape)
    if ndim == 0:
        return shape, draw(st.sampled_from([None, ()]))
    chosen = draw(st.lists(st.integers(0, ndim - 1), unique=True, max_size=ndim))
    chosen = [axis - ndim if draw(st.booleans()) else axis for axis in chosen]
    return shape, draw(st.sampled_from([None, tuple(chosen), *chosen[:1]]))


def run(function, array):
    """The result's array, a random integer gradient for it, and the gradient of the argument."""
    x = Tensor(array, requires_grad=True)
    y = function(x)
    g = integers(y.shape, seed=1) + 1
    y.backward(g)
    return y.data, g, x.grad


def jacobian_transposed(function, array, g):
    """The gradient of a function that moves or sums elements, from its values on unit vectors."""
    columns = np.eye(array.size).reshape(array.size, *array.shape)
    return np.array([np.sum(function(column) * g) for column in columns]).reshape(array.shape)


@repeatable
@given(shape_and_axes(shapes), st.booleans())
def test_sum(shape_axis, keepdims):
    shape, axis = shape_axis
    a = integers(shape)
    value, g, gradient = run(lambda x: x.sum(axis=axis, keepdims=keepdims), a)
    np.testing.assert_array_equal(value, np.sum(a, axis=axis, keepdims=keepdims), strict=True)
    np.testing.assert_array_equal(
        gradient, jacobian_transposed(lambda c: np.sum(c, axis=axis, keepdims=keepdims), a, g), strict=True
    )


@repeatable
@given(shape_and_axes(full_shapes), st.booleans())
def test_mean(shape_axis, keepdims):
    shape, axis = shape_axis
    a = integers(shape)
    value, g, gradient = run(lambda x: x.mean(axis=axis, keepdims=keepdims), a)
    np.testing.assert_allclose(value, np.mean(a, axis=axis, keepdims=keepdims), rtol=1e-15, strict=True)
    expected = jacobian_transposed(lambda c: np.mean(c, axis=axis, keepdims=keepdims), a, g)
    np.testing.assert_allclose(gradient, expected, rtol=1e-14, strict=True)


@repeatable
@given(shape_and_axes(full_shapes), st.booleans())
def test_max(shape_axis, keepdims):
    shape, axis = shape_axis
    a = integers(shape)
    value, g, gradient = run(lambda x: x.max(axis=axis, keepdims=keepdims), a)
    np.testing.assert_array_equal(value, np.max(a, axis=axis, keepdims=keepdims), strict=True)
    # g goes to where the maximum is, which is one place: the integers differ
    kept = np.max(a, axis=axis, keepdims=True)
    np.testing.assert_array_equal(gradient, np.where(a == kept, g.reshape(kept.shape), 0), strict=True)


@repeatable
@given(hnp.arrays(np.int64, full_shapes, elements=st.integers(0, 2)))
def test_equal_maxima_share(a):
    _, g, gradient = run(lambda x: x.max(), a.astype(np.float64))
    np.testing.assert_allclose(gradient, g * (a == a.max()) / (a == a.max()).sum(), strict=True)


@repeatable
@given(st.data())
def test_basic_index(data):
    shape = data.draw(full_shapes)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    check_index(integers(shape), index)


@repeatable
@given(st.data())
def test_integer_index(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    index = data.draw(hnp.integer_array_indices(shape))
    check_index(integers(shape), index)


@repeatable
@given(st.data())
def test_boolean_index(data):
    shape = data.draw(shapes)
    covered = data.draw(st.integers(0, len(shape)))
    index = data.draw(hnp.arrays(bool, shape[:covered]))
    check_index(integers(shape), index)


def check_index(a, index):
    value, g, gradient = run(lambda x: x[index], a)
    np.testing.assert_array_equal(value, a[index], strict=True)
    np.testing.assert_array_equal(gradient, jacobian_transposed(lambda c: c[index], a, g), strict=True)


@repeatable
@given(st.data())
def test_reshape(data):
    shape = data.draw(full_shapes)
    size = int(np.prod(shape))
    divisor = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    target = data.draw(st.sampled_from([(divisor, -1), (-1, divisor), (-1,), (1, size), (divisor, size // divisor, 1)]))
    a = integers(shape)
    value, g, gradient = run(lambda x: x.reshape(target), a)
    np.testing.assert_array_equal(value, a.reshape(target), strict=True)
    np.testing.assert_array_equal(gradient, g.reshape(shape), strict=True)


@repeatable
@given(st.data())
def test_transpose(data):
    shape = data.draw(shapes)
    ndim = len(shape)
    axes = data.draw(st.none() | st.permutations(range(ndim)).map(tuple))
    if axes is not None:
        axes = tuple(axis - ndim if data.draw(st.booleans()) else axis for axis in axes)
    a = integers(shape)
    value, g, gradient = run(lambda x: ops.transpose(x, axes=axes), a)
    np.testing.assert_array_equal(value, np.transpose(a, axes), strict=True)
    np.testing.assert_array_equal(gradient, jacobian_transposed(lambda c: np.transpose(c, axes), a, g), strict=True)


@st.composite
def pieces_along_axis(draw):
    """(shape, axis, sizes): an array whose axis consists of pieces of these sizes, empty ones included."""
    shape = list(draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    shape[axis] = sum(sizes)
    return tuple(shape), axis, sizes


@repeatable
@given(pieces_along_axis())
def test_concatenate(where):
    shape, axis, sizes = where
    a = integers(shape)
    parts = [Tensor(part, requires_grad=True) for part in np.split(a, np.cumsum(sizes)[:-1], axis)]
    y = ops.concatenate(*parts, axis=axis)
    np.testing.assert_array_equal(y.data, a, strict=True)
    g = integers(shape, seed=1)
    y.backward(g)
    for part, expected in zip(parts, np.split(g, np.cumsum(sizes)[:-1], axis)):
        np.testing.assert_array_equal(part.grad, expected, strict=True)


@repeatable
@given(pieces_along_axis(), st.data())
def test_split(where, data):
    shape, axis, sizes = where
    a = integers(shape)
    x = Tensor(a, requires_grad=True)
    parts = ops.split(x, sizes=tuple(sizes), axis=axis)
    bounds = np.cumsum(sizes)[:-1]
    for part, expected in zip(parts, np.split(a, bounds, axis), strict=True):
        np.testing.assert_array_equal(part.data, expected, strict=True)
    used = data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1))
    g = integers(shape, seed=1)
    expected = [np.where(i in used, piece, 0.0) for i, piece in enumerate(np.split(g, bounds, axis))]
    total = Tensor(np.zeros(()))
    for i in sorted(used):
        total = total + (parts[i] * np.split(g, bounds, axis)[i]).sum()
    total.backward()
    np.testing.assert_array_equal(x.grad, np.concatenate(expected, axis), strict=True)


@repeatable
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=4))
def test_gradients_of_broadcast_operands(shapes):
    a, b = (Tensor(integers(shape, seed=i), requires_grad=True) for i, shape in enumerate(shapes.input_shapes))
    y = a * b
    assert y.shape == shapes.result_shape
    g = integers(y.shape, seed=2)
    y.backward(g)
    for own, other in ((a, b), (b, a)):
        expected = jacobian_transposed(lambda column, other=other: column * other.data, own.data, g)
        np.testing.assert_array_equal(own.grad, expected, strict=True)


@repeatable
@given(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=(2, 3, 1, 2), min_side=0, max_dims=4))
def test_unbroadcast_is_the_adjoint_of_broadcasting(shapes):
    # <broadcast x, g> = <x, unbroadcast g>
    (shape,) = shapes.input_shapes
    if np.broadcast_shapes(shape, (2, 3, 1, 2)) != shapes.result_shape:
        return
    x, g = integers(shape), integers(shapes.result_shape, seed=1)
    back = unbroadcast(g, shape)
    assert back.shape == shape
    assert np.sum(np.broadcast_to(x, g.shape) * g) == np.sum(x * back)


@repeatable
@given(hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, min_side=0, max_side=3, max_dims=2))
def test_matmul(shapes):
    arrays = [integers(shape, seed=i) for i, shape in enumerate(shapes.input_shapes)]
    a, b = (Tensor(array, requires_grad=True) for array in arrays)
    y = a @ b
    np.testing.assert_array_equal(y.data, np.matmul(*arrays), strict=True)
    g = integers(y.shape, seed=2)
    y.backward(g)
    expected = jacobian_transposed(lambda column: column @ arrays[1], arrays[0], g)
    np.testing.assert_array_equal(a.grad, expected, strict=True)
    expected = jacobian_transposed(lambda column: arrays[0] @ column, arrays[1], g)
    np.testing.assert_array_equal(b.grad, expected, strict=True)

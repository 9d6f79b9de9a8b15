"""What every primitive promises: it writes into nothing it was given, and keeps the dtype."""

import gc
import operator

import numpy as np
import pytest
from operation_cases import CASES, every_case, primitives

from parallel_dl.autograd import Tensor, ops
from parallel_dl.autograd.accumulation import _writes_into_out

TABLE = [pytest.param(operation, case, id=identity) for identity, operation, case in every_case()]


def copied(value, dtype=None, writeable=True):
    """A copy of the arrays in a case, floating-point ones in `dtype`."""
    if isinstance(value, dict):
        return {name: copied(part, None, writeable) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(copied(part, dtype, writeable) for part in value)
    if not isinstance(value, np.ndarray):
        return value
    value = np.array(value, dtype if value.dtype.kind == "f" else None)
    value.flags.writeable = writeable
    return value


def is_floating(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def gradients_for(value, writeable=True):
    """A random gradient for each result, of the results' dtype."""
    random = np.random.default_rng(0)
    if isinstance(value, tuple):
        return tuple(gradients_for(part, writeable) for part in value)
    g = np.asarray(random.standard_normal(np.shape(value)), np.asarray(value).dtype)
    g.flags.writeable = writeable
    return g


@pytest.mark.parametrize(("operation", "case"), TABLE)
def test_nothing_is_written_into_inputs_or_gradients(operation, case):
    arguments = copied(case.arguments, writeable=False)
    static = copied(case.static, writeable=False)
    # the function beneath the operation: arrays in, value and pullbacks out
    value, pullbacks = operation.__wrapped__(*arguments, **static)
    for result in value if isinstance(value, tuple) else (value,):
        if isinstance(result, np.ndarray):
            result.flags.writeable = False
    g = gradients_for(value, writeable=False)
    for argument, pullback in zip(arguments, pullbacks):
        if is_floating(argument):
            first = np.array(pullback(g))
            np.testing.assert_array_equal(first, pullback(g), err_msg="the second call gave something else")
            assert first.shape == argument.shape
    for argument, original in zip(arguments, case.arguments):
        np.testing.assert_array_equal(argument, original)


@pytest.mark.parametrize(("operation", "case"), TABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pullback_that_takes_out_writes_into_it(operation, case, dtype):
    """Also when its dtype is another, as that of a float32 weight is whose network got float64 data."""
    value, pullbacks = operation.__wrapped__(*copied(case.arguments), **copied(case.static))
    g = gradients_for(value)
    for argument, pullback in zip(case.arguments, pullbacks):
        if is_floating(argument) and _writes_into_out(pullback):
            expected, out = pullback(g), np.full(argument.shape, np.nan, dtype)
            pullback(g, out)
            np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_no_reference_cycle_keeps_arrays_alive(name):
    """Activations go when backward has passed them, not when the collector comes."""
    operation = primitives()[name]
    gc.freeze()  # what is there already does not count
    gc.disable()
    try:
        for case in CASES[name]:
            arguments, static = copied(case.arguments), copied(case.static)
            value, pullbacks = operation.__wrapped__(*arguments, **static)
            for argument, pullback in zip(arguments, pullbacks):
                if is_floating(argument):
                    pullback(gradients_for(value))
            del value, pullbacks
        assert gc.collect() == 0
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize(("operation", "case"), TABLE)
def test_backward_writes_into_nothing_it_was_given(operation, case):
    arguments = copied(case.arguments, writeable=False)
    leaves = [Tensor(a, requires_grad=True) if is_floating(a) else a for a in arguments]
    results = operation(*leaves, **copied(case.static, writeable=False))
    for result in results if isinstance(results, tuple) else (results,):
        result.backward(gradients_for(result.data, writeable=False))
        break  # the pass frees the history that several results share
    for tensor in leaves:
        if isinstance(tensor, Tensor):
            assert tensor.grad.flags.owndata
            assert tensor.grad.flags.writeable


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("operation", "case"), TABLE)
def test_dtype_is_kept(operation, case, dtype):
    arguments = copied(case.arguments, dtype)
    value, pullbacks = operation.__wrapped__(*arguments, **case.static)
    for result in value if isinstance(value, tuple) else (value,):
        assert result.dtype == dtype
    g = gradients_for(value)
    for argument, pullback in zip(arguments, pullbacks):
        if is_floating(argument):
            assert pullback(g).dtype == dtype


def test_table_has_python_scalars_on_both_sides():
    for name in ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum"):
        for side in (0, 1):
            assert any(isinstance(case.arguments[side], float) for case in CASES[f"elementwise.{name}"])


BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (2, 2)])
@pytest.mark.parametrize("function", BINARY)
def test_operators_from_both_sides(function, shape, dtype):
    values = np.asarray(np.random.default_rng(1).uniform(1, 2, shape), dtype)
    x = Tensor(values, requires_grad=True)
    for other in (2, 0.5, dtype(1.5), np.full((2, 2), 1.25, dtype), Tensor(np.asarray(3, dtype))):
        plain = other.data if isinstance(other, Tensor) else other
        for result, expected in (
            (function(x, other), function(values, plain)),
            (function(other, x), function(plain, values)),
        ):
            assert type(result) is Tensor
            assert result.dtype == dtype
            np.testing.assert_allclose(result.data, expected, rtol=1e-6)
            result.sum().backward()
            assert x.grad.dtype == dtype
            assert x.grad.shape == shape


def test_matmul_and_negation_operators():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    for result in (Tensor(a) @ b, a @ Tensor(b), Tensor(a) @ Tensor(b)):
        assert type(result) is Tensor
        np.testing.assert_array_equal(result.data, a @ b)
    np.testing.assert_array_equal((-Tensor(a)).data, -a)


def test_in_place_operators_make_a_new_tensor():
    array = np.ones(2)
    x = Tensor(array)
    y = x
    y += 1
    assert y is not x
    np.testing.assert_array_equal(array, [1, 1])
    array *= 1
    z = array
    z = z + x
    assert type(z) is Tensor


def test_a_gradient_has_the_dtype_of_its_leaf_in_mixed_arithmetic():
    single = Tensor(np.ones(3, np.float32), requires_grad=True)
    double = Tensor(np.ones(3), requires_grad=True)
    mixed = single * double
    assert mixed.dtype == np.float64
    for _ in range(2):  # the first contribution, and one that is added
        (single * double).sum().backward()
        assert single.grad.dtype == np.float32
        assert double.grad.dtype == np.float64


def test_what_a_tensor_is_made_of():
    assert Tensor(1.5).dtype == np.float32
    assert Tensor([[1.0, 2.0]]).dtype == np.float32
    assert Tensor([1, 2]).dtype == np.int64
    assert Tensor(np.float64(1)).dtype == np.float64
    assert Tensor(np.ones(2, np.float16)).dtype == np.float16
    array = np.ones(3)
    assert Tensor(array).data is array
    assert Tensor(Tensor(array)).data is array
    assert Tensor(array).numpy() is array
    assert np.asarray(Tensor(array)) is array
    np.testing.assert_array_equal(Tensor([1.0, 2.0]), [1, 2])


def test_numbers_from_tensors():
    assert float(Tensor([[2.5]])) == 2.5
    assert Tensor([[2.5]]).item() == 2.5
    assert bool(Tensor(1.0))
    assert len(Tensor([1.0, 2.0])) == 2
    assert repr(Tensor([1.0, 2.0], requires_grad=True)) == "Tensor([1., 2.], dtype=float32, requires_grad=True)"


def test_methods_are_the_operations():
    x = Tensor(np.random.default_rng(0).uniform(0.5, 1, (2, 3)))
    for name in ("exp", "log", "sqrt", "tanh", "sigmoid", "relu", "sum", "mean", "max"):
        np.testing.assert_array_equal(getattr(x, name)().data, getattr(ops, name)(x).data)
    for made in (x.reshape(3, 2), x.reshape((3, 2)), x.reshape(-1, 2)):
        assert made.shape == (3, 2)
    for made in (x.T, x.transpose(), x.transpose(1, 0), x.transpose((1, 0)), x.transpose(-1, -2)):
        np.testing.assert_array_equal(made.data, x.data.T)
    assert (x.ndim, x.size, x.shape) == (2, 6, (2, 3))


def test_ties_share_the_gradient():
    x = Tensor(np.array([1.0, 3.0, 3.0]), requires_grad=True)
    x.max().backward()
    np.testing.assert_array_equal(x.grad, [0, 0.5, 0.5])
    a, b = Tensor(np.array([1.0, 2.0]), requires_grad=True), Tensor(np.array([1.0, 1.0]), requires_grad=True)
    (ops.maximum(a, b) + ops.minimum(a, b)).sum().backward()
    np.testing.assert_array_equal(a.grad, [1, 1])
    np.testing.assert_array_equal(b.grad, [1, 1])


def test_gradients_at_zero():
    for function in (ops.relu, ops.absolute):
        x = Tensor(np.zeros(1), requires_grad=True)
        function(x).sum().backward()
        np.testing.assert_array_equal(x.grad, [0])
    base, exponent = Tensor(np.zeros(3), requires_grad=True), Tensor(np.array([0.0, 1.0, 2.0]), requires_grad=True)
    (base**exponent).sum().backward()
    np.testing.assert_array_equal(base.grad, [0, 1, 0])
    np.testing.assert_array_equal(exponent.grad, [0, 0, 0])


def test_large_scores_do_not_overflow():
    scores = np.array([[1000.0, 0.0, -1000.0]])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_allclose(ops.softmax(scores).data, [[1, 0, 0]])
        np.testing.assert_allclose(ops.log_softmax(scores).data, [[0, -1000, -2000]])
        np.testing.assert_allclose(ops.cross_entropy(scores, targets=np.array([2])).data, 2000)
        np.testing.assert_allclose(ops.sigmoid(scores).data, [[1, 0.5, 0]])
        np.testing.assert_allclose(ops.gelu(scores).data, [[1000, 0, 0]])


def test_cross_entropy_divides_by_the_total_and_refuses_other_classes():
    scores = np.random.default_rng(0).standard_normal((4, 3))
    targets = np.array([0, 2, 1, 1])
    plain = -ops.log_softmax(scores).data[np.arange(4), targets].sum()
    for total in (1, 8, 4.0):
        np.testing.assert_allclose(ops.cross_entropy(scores, targets=targets, total=total).data, plain / total)
    for bad in (3, -1):
        with pytest.raises(ValueError, match=r"targets must be in 0\.\.2"):
            ops.cross_entropy(scores, targets=np.array([0, bad, 1, 1]))


def test_an_index_may_be_a_tensor():
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    rows, columns = Tensor(np.array([1, 1, 0])), Tensor(np.array([0, 0, 2]))
    np.testing.assert_array_equal(x[rows].data, x.data[rows.data])
    picked = x[rows, columns]
    np.testing.assert_array_equal(picked.data, [3, 3, 2])
    picked.sum().backward()
    np.testing.assert_array_equal(x.grad, [[0, 0, 1], [2, 0, 0]])

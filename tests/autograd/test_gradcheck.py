"""Every primitive's pullbacks against finite differences, in every memory layout."""

import numpy as np
import pytest
from operation_cases import BROADCASTING, CASES, LAYOUTS, NO_SCALARS, every_case, positive, primitives, relaid, spread

from parallel_dl.autograd import Tensor, gradcheck, ops, primitive

TABLE = [pytest.param(operation, case, id=identity) for identity, operation, case in every_case()]


def test_every_primitive_has_cases_of_every_kind():
    assert set(primitives()) == set(CASES)
    assert len(CASES) >= 32
    for name, cases in CASES.items():
        kinds = {"ordinary", "zero-size"}
        kinds |= set() if name in NO_SCALARS else {"0-d"}
        kinds |= {"broadcast"} if name in BROADCASTING else set()
        assert kinds <= {case.kind for case in cases}, name


def test_every_operation_offered_is_a_primitive_or_made_of_them():
    offered = {getattr(ops, name) for name in ops.__all__}
    assert offered - set(primitives().values()) == {ops.stack}


@pytest.mark.parametrize(("operation", "case"), TABLE)
def test_pullbacks_agree_with_differences(operation, case):
    assert gradcheck(operation, *case.arguments, **case.static) < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("operation", "case"), TABLE)
def test_pullbacks_agree_with_differences_for_other_layouts(operation, case, layout):
    arrays = [isinstance(argument, np.ndarray) for argument in case.arguments]
    arguments = [relaid(a, layout) if is_array else a for a, is_array in zip(case.arguments, arrays)]
    for argument, original, is_array in zip(arguments, case.arguments, arrays):
        if is_array:
            np.testing.assert_array_equal(argument, original)
    assert gradcheck(operation, *arguments, **case.static) < 1e-6
    # the forward pass on contiguous memory gives the same
    values = [operation(*given, **case.static) for given in (arguments, case.arguments)]
    for strange, plain in zip(*[value if isinstance(value, tuple) else (value,) for value in values]):
        np.testing.assert_allclose(strange.data, plain.data, rtol=1e-13)


def test_layouts_are_not_contiguous():
    for layout in LAYOUTS:
        assert not relaid(spread(3, 4), layout).flags.c_contiguous
    assert relaid(spread(3, 4), "negative").strides[0] < 0


def test_stack_agrees_with_differences():
    for axis in (0, 1, -1, -2):
        assert gradcheck(ops.stack, spread(3, 2), spread(3, 2, seed=1), axis=axis) < 1e-6
        expected = np.stack([spread(3, 2), spread(3, 2, seed=1)], axis)
        np.testing.assert_array_equal(ops.stack(spread(3, 2), spread(3, 2, seed=1), axis=axis).data, expected)


def test_compositions_agree_with_differences():
    def network(x, weight, bias):
        hidden = ops.gelu(ops.linear(x, weight, bias))
        parts = ops.split(hidden, sizes=(1, 2), axis=1)
        return ops.cross_entropy(ops.concatenate(parts[1] * parts[0], hidden, axis=1), targets=np.array([0, 4, 1, 1]))

    assert gradcheck(network, spread(4, 5), spread(3, 5, seed=1), spread(3)) < 1e-6


@primitive
def _swapped_adjoint(a, b):
    return np.divide(a, b), (lambda g: -g * a / b**2, lambda g: g / b)


@primitive
def _factor_two(a, b):
    return a * b, (lambda g: g * b, lambda g: 2 * g * a)


@primitive
def _transposed(a, b):
    return a @ b, (lambda g: (g @ b.T).T, lambda g: a.T @ g)


@primitive
def _forgotten(a, b):
    return a * b, (lambda g: g * b, lambda g: np.zeros_like(b))


@primitive
def _not_a_number(a, b):
    return a * b, (lambda g: g * np.nan, lambda g: g * a)


@pytest.mark.parametrize("wrong", [_swapped_adjoint, _factor_two, _transposed, _forgotten, _not_a_number])
def test_a_wrong_pullback_is_found(wrong):
    with pytest.raises(AssertionError, match=r"argument [01], element \(\d, \d\): backward gives"):
        gradcheck(wrong, positive(3, 3), positive(3, 3, seed=1))


def test_a_gradient_that_a_function_cuts_off_is_found():
    with pytest.raises(AssertionError, match="argument 0"):
        gradcheck(lambda a: a * a.detach(), spread(3))
    with pytest.raises(AssertionError, match="argument 0"):
        gradcheck(lambda a: Tensor(a.data * 2), spread(3))


def test_a_small_error_in_one_element_is_found():
    @primitive
    def nearly(a):
        return a * a, (lambda g: 2 * g * a * (1 + 1e-5 * (np.arange(a.size) == 2)),)

    with pytest.raises(AssertionError, match=r"element \(2,\)"):
        gradcheck(nearly, positive(4))

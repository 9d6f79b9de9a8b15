"""The formulas of multiplications agree with what a run counts."""

import pytest
from definition import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_dl.convolution import METHODS, Geometry, count_multiplications, multiplications
from parallel_dl.errors import InputError


@settings(max_examples=60, deadline=None)
@given(case=st.one_of(convolutions(), convolutions(kernels=(3, 3))))
def test_formula_is_what_a_run_counts(case):
    x_shape, weight_shape, sizes = case
    geometry = Geometry.of(x_shape, weight_shape, **sizes)
    for method in METHODS:
        if METHODS[method].refusal(geometry) is None:
            formula = multiplications(method, geometry)
            assert set(formula) == {"products", "transforms"}
            assert count_multiplications(method, geometry) == sum(formula.values()), method
        else:
            with pytest.raises(InputError, match="cannot do"):
                multiplications(method, geometry)


def test_the_savings_that_give_the_methods_their_names():
    """Tiles that fit: F(2x2, 3x3) makes 16/36 of the definition's products, F(4x4, 3x3) 36/144."""
    geometry = Geometry.of((2, 8, 18, 18), (4, 8, 3, 3))  # no padding: 16 x 16 pixels
    products = {method: multiplications(method, geometry)["products"] for method in METHODS}
    assert products["direct"] == products["im2col"] == 2 * 4 * 8 * 9 * 16 * 16
    assert products["winograd"] * 9 == products["direct"] * 4
    assert products["winograd4x4"] * 4 == products["direct"]


def test_a_long_kernel_costs_the_spectrum_no_more():
    products = [multiplications("fft", Geometry.of((1, 1, 32, 32), (1, 1, k, k))) for k in (3, 15, 31)]
    assert products[0] == products[1] == products[2]

"""Sums over blocks reach every value: also the only one of the last block, and arrays of a block or of none."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.nn.flat import BLOCK, in_blocks
from parallel_dl.optim.norms import gradient_squares, sum_of_squares

LENGTHS = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK + 1)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_value_is_in_the_sum_once(length, dtype):
    values = np.arange(length) % 7 + 1.0
    assert sum_of_squares(values.astype(dtype)) == float(sum(values.astype(int) ** 2))


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_the_values_around_the_ends_of_blocks_each_by_itself(length):
    for place in {0, length - 1, *range(BLOCK - 1, length, BLOCK), *range(BLOCK, length, BLOCK)}:
        alone = np.zeros(length)
        alone[place] = 3
        assert sum_of_squares(alone) == 9


def test_squares_of_gradients_of_any_shape_and_of_none():
    parameters = nn.Sequential(nn.Linear(BLOCK + 1, 1), nn.Linear(3, 2)).initialize(0, "float64").parameters()
    parameters[0].grad = np.zeros((1, BLOCK + 1))
    parameters[0].grad[0, -1] = 2
    parameters[2].grad = np.array([[1.0, 2, 3], [4, 5, 6]]).T.copy().T  # in the other order of memory
    assert gradient_squares(parameters).tolist() == [4, 0, 91, 0]


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_updates_reach_every_value_once(length):
    weights, gradient = np.zeros(length), np.arange(length) + 1.0
    in_blocks(lambda w, g: np.subtract(w, g, out=w), (weights, gradient))
    np.testing.assert_array_equal(weights, -gradient)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, optim.LARS], ids=lambda make: make.__name__)
def test_the_last_weight_of_a_block_and_one_is_updated_as_the_others(make, scale):
    """Equal weights with equal gradients stay equal; a clipped step passes over a scaled copy."""
    model = nn.Sequential(nn.Linear(2 * BLOCK + 1, 1, bias=False)).initialize(0, "float64")
    (weight,) = model.parameters()
    weight.data[...], weight.grad = 0.5, np.full(weight.shape, 0.25)
    optimizer = make(model.parameters(), 0.1)
    optimizer.step(scale)
    assert weight.data[0, 0] != 0.5
    assert (weight.data == weight.data[0, 0]).all()

"""Sums of squares of weights and gradients: what norms are made of, also where ranks have only pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from parallel_dl.nn import Parameter
from parallel_dl.nn.flat import BLOCK


def sum_of_squares(array: np.ndarray) -> float:
    """The sum of squares of an array of any shape, in float64: in float32, sums of millions of squares lose digits."""
    flat = array.reshape(-1)
    total = 0.0
    for start in range(0, len(flat), BLOCK):
        piece = flat[start : start + BLOCK].astype(np.float64, copy=False)  # stays in the cache
        total += float(np.dot(piece, piece))
    return total


SquaresOf = Callable[[Parameter, "np.ndarray | None"], Any]
"""a parameter, and its values or gradient or None -> the sum of their squares, or a row of summands of it"""


def squares_of(parameter: Parameter, array: np.ndarray | None) -> float:
    """The sum of squares of the values, or gradient, of a parameter; 0 for None."""
    return 0.0 if array is None else sum_of_squares(array)


def gradient_squares(parameters: Iterable[Parameter], squares_of: SquaresOf = squares_of) -> np.ndarray:
    """(parameters,) float64: the sum of squares of each gradient, 0 where there is none; or its rows of summands.

    `squares_of(parameter, gradient)` gives either.
    """
    return np.array([squares_of(parameter, parameter.grad) for parameter in parameters])

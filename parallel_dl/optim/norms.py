"""Sums of squares of weights and gradients: what norms are made of, also where ranks have only pieces."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from parallel_dl.nn import Parameter
from parallel_dl.nn.flat import BLOCK


def sum_of_squares(array: np.ndarray) -> float:
    """Of all values of an array of any shape, in float64: in float32 sums of millions of squares lose digits."""
    flat = array.reshape(-1)
    total = 0.0
    for start in range(0, len(flat), BLOCK):
        piece = flat[start : start + BLOCK].astype(np.float64, copy=False)  # stays in the cache
        total += float(np.dot(piece, piece))
    return total


def gradient_squares(parameters: Iterable[Parameter]) -> np.ndarray:
    """(parameters,) float64: the sum of squares of each gradient, 0 where there is none."""
    return np.array([0.0 if p.grad is None else sum_of_squares(p.grad) for p in parameters])

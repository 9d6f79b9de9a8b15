"""Sums inside a sample: over the pixels of each channel, and over the features that layer norm normalises.

No leaves are needed for them, since no layout divides them, only an order that does not depend on the layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, ops, primitive
from parallel_dl.reproducible.leaves import sum_of_rows


@primitive
def pixel_mean(x):
    """The mean of each whole image: (n, c, h, w) -> (n, c, 1, 1), pixels added up in halves."""
    samples, channels, height, width = x.shape
    pixels = x.transpose(2, 3, 0, 1).reshape(height * width, samples, channels)
    value = (sum_of_rows(pixels) / max(1, height * width)).reshape(samples, channels, 1, 1)
    return value, (lambda g: np.broadcast_to(g / max(1, height * width), x.shape).copy(),)


@primitive
def in_order(x):
    """x itself, contiguous, and its gradient too: NumPy adds up in the order in which an array lies in memory."""
    return np.array(x, order="C"), (lambda g: np.array(g, order="C"),)


def layer_norm(x: Any, weight: Any, bias: Any, *, dimensions: int, eps: float) -> Tensor:
    """`ops.layer_norm` of contiguous arrays."""
    return in_order(ops.layer_norm(in_order(x), weight, bias, dimensions=dimensions, eps=eps))

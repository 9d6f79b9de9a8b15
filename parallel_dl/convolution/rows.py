"""How images lie in memory while they are convolved: as rows, (height, channels, width, samples).

The samples are innermost, so every copy and every product runs over long contiguous stretches, also in layers with
few channels; the rows are outermost, so that the ky rows under one row of the result are one contiguous block, and
im2col only has to copy along the width. Towards the outside an image stays (samples, channels, height, width): a
transposed view of the rows. Element-wise operations keep that order of memory, so it is made once, at the first
layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


def to_rows(x: Array, dtype: Any = None) -> Array:
    """(samples, channels, height, width) as contiguous (height, channels, width, samples); a copy only if need be."""
    return np.ascontiguousarray(x.transpose(2, 1, 3, 0), dtype)


def from_rows(rows: Array) -> Array:
    """(height, channels, width, samples) seen as (samples, channels, height, width), without a copy."""
    return rows.transpose(3, 1, 0, 2)


def by_group(rows: Array, groups: int) -> Array:
    """(height, channels, width, samples) as (groups, height, channels / groups, width, samples), a view."""
    height, channels, width, samples = rows.shape
    return rows.reshape(height, groups, channels // groups, width, samples).swapaxes(0, 1)


class Convolved(NamedTuple):
    """A convolution's result and its pullbacks.

    The gradient of the result, as rows, first goes through `prepare` (work that both pullbacks share); both take what
    it gives, at any time and in any order.
    """

    value: Array
    """rows of the result: (out_height, out_channels, out_width, samples)"""
    prepare: Callable[[Array], Any]
    input_gradient: Callable[[Any], Array]
    """prepared gradient -> rows of the gradient of x"""
    weight_gradient: Callable[[Any, Array], None]
    """writes the gradient of the weight into the array given (of the weight's shape)"""

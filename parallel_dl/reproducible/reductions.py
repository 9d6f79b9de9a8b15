"""Sums inside a sample, over pixels or normalised features, and the statistics of batch norm, over all samples.

The first need no leaves, since no layout divides them, only an order that does not depend on the layout.
"""

from __future__ import annotations

import numpy as np

from parallel_dl.autograd import once, ops, primitive
from parallel_dl.reproducible.leaves import Own, runs, sum_of_leaves, sum_of_rows

_BLOCK = 1 << 18  # values of a temporary array
_layer_norm = ops.layer_norm.__wrapped__


@primitive
def pixel_mean(x):
    """The mean of each whole image: (n, c, h, w) -> (n, c, 1, 1), pixels added up in halves."""
    samples, channels, height, width = x.shape
    pixels = x.transpose(2, 3, 0, 1).reshape(height * width, samples, channels)
    value = (sum_of_rows(pixels) / max(1, height * width)).reshape(samples, channels, 1, 1)
    return value, (lambda g: np.broadcast_to(g / max(1, height * width), x.shape).copy(),)


@primitive
def layer_norm(x, weight=None, bias=None, *, leaves, dimensions=1, eps=1e-5):
    """`ops.layer_norm` of x (n, ...) in `leaves` leaves, one after the other; weight and bias (leaves, ...) or None.

    Each is contiguous: NumPy adds up in the order in which an array lies in memory.
    """
    value = np.empty(x.shape, np.result_type(*(array for array in (x, weight, bias) if array is not None)))
    of_leaves = []
    for run in runs(len(x), leaves, 1):
        own = (None if array is None else array[0] for array in (weight, bias))
        value[run.rows], pullbacks = _layer_norm(np.array(x[run.rows], order="C"), *own, dimensions=dimensions, eps=eps)
        of_leaves.append((run, pullbacks))
    part = once(lambda g: np.array(g, value.dtype, order="C"))

    def gradient_x(g):
        gradient = np.empty(x.shape, value.dtype)
        for run, pullbacks in of_leaves:
            gradient[run.rows] = pullbacks[0](part(g)[run.rows])
        return gradient

    def of_weights(number, array):
        def gradient(g):
            total = np.zeros(array.shape, value.dtype)
            for run, pullbacks in of_leaves:
                total[run.leaves] = pullbacks[number](part(g)[run.rows])
            return total

        return gradient

    return value, (gradient_x, of_weights(1, weight), of_weights(2, bias))


def squares_of_rows(array: np.ndarray, inputs: Own) -> np.ndarray:
    """(rows, ...) -> (leaves, rows) in float64: the squares of each row in each leaf of the second axis, added up."""
    wide = array.reshape(len(array), sum(inputs.sizes), -1)
    sums, step = np.empty((len(inputs.sizes), len(wide))), max(1, _BLOCK // max(1, wide[:1].size))
    for start in range(0, len(wide), step):
        squares = np.square(wide[start : start + step], dtype=np.float64)
        stack = np.moveaxis(inputs.cut(squares, 1), (0, 1), (-2, -1))  # (block, rest, I, rows)
        sums[:, start : start + step] = sum_of_rows(stack.reshape(-1, *stack.shape[2:]))
    return sums


def _batch_norm(x, weight=None, bias=None, *, leaves, total, eps=1e-5, observe=None):
    """`ops.synchronized_batch_norm` of x (n, C, ...) over leaves; weight and bias (leaves, C) or None.

    `total` finishes a sum that this rank has made of its leaves.
    """
    dtype = np.result_type(*(array for array in (x, weight, bias) if array is not None))
    rest = (1,) * (x.ndim - 2)

    def in_leaves(array):
        """(leaves, C) in float64: the array's sums in each leaf, added up in halves."""
        sums = np.zeros((leaves, x.shape[1]))
        for run in runs(len(x), leaves):
            values = np.moveaxis(run.of(array), (0, 2), (-2, -1))  # (size, ..., count, C)
            values = values.reshape(int(np.prod(values.shape[:-2])), *values.shape[-2:])
            sums[run.leaves] = sum_of_rows(values.astype(np.float64))
        return sums

    def wide(array):
        return np.array(array, dtype).reshape(1, -1, *rest)

    sums = total(np.append(sum_of_leaves(in_leaves(x)), x.size // max(1, x.shape[1])))
    count = float(sums[-1])
    n = max(count, 1.0)
    mean = sums[:-1] / n
    centred = np.subtract(x, wide(mean), dtype=dtype)
    variance = total(sum_of_leaves(in_leaves(np.square(centred, dtype=np.float64)))) / n
    if observe is not None:
        observe(mean, variance, int(count))
    inverse = 1 / np.sqrt(variance + eps)
    scale = wide(inverse if weight is None else weight[0] * inverse)
    value = centred * scale
    if bias is not None:
        value += wide(bias[0])

    @once
    def own_sums(g):
        """The sums of g and of g (x - mean) in each leaf: (leaves, 2, C)."""
        return np.stack((in_leaves(g), in_leaves(np.multiply(g, centred, dtype=np.float64))), 1)

    # dL/dx = scale (g - sum(g)/n - (x - mean) sum(g (x - mean)) / (n (variance + eps)))
    def gradient_x(g):
        along, across = total(np.ascontiguousarray(sum_of_leaves(own_sums(g)))) / n
        return (centred * wide(-across * inverse**2) + g - wide(along)) * scale

    return value, (
        gradient_x,
        lambda g: (own_sums(g)[:, 1] * inverse).astype(dtype),
        lambda g: own_sums(g)[:, 0].astype(dtype),
    )


batch_norm = primitive(_batch_norm)
synchronized_batch_norm = primitive(_batch_norm, collective=True)

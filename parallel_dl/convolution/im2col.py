"""im2col: the image's patches as the columns of a matrix, the convolution as a product of matrices.

The textbook's matrix holds every pixel ky kx times. Here the image is copied kx times only, once for every horizontal
tap, into (rows, kx, channels, columns of the result, samples). What lies under one row of the result is then ky whole
rows of that array, which follow each other in memory: a matrix (ky kx channels, columns samples) without another copy,
and the next row's matrix overlaps it.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from parallel_dl.convolution.geometry import Geometry
from parallel_dl.convolution.rows import Array, Convolved, by_group

_BLOCK = 1 << 18  # values of a temporary array: it stays in the cache


def convolve(x: Array, weight: Array, geometry: Geometry) -> Convolved:
    """weight (groups, out, ky kx in) times the patches (groups, rows, ky kx in, columns samples)."""
    groups, vertical, horizontal = geometry.groups, geometry.vertical, geometry.horizontal
    height, ky, kx = vertical.out, vertical.kernel, horizontal.kernel
    out, inputs = geometry.out_channels // groups, geometry.in_channels // groups
    columns = horizontal.out * geometry.batch
    kernels = (
        weight.reshape(groups, out, inputs, ky, kx).transpose(0, 1, 3, 4, 2).reshape(groups, out, ky * kx * inputs)
    )
    value = np.empty_like(x, shape=(height, geometry.out_channels, horizontal.out, geometry.batch))
    np.matmul(kernels[:, np.newaxis], _patches(_spread(x, geometry), geometry), out=_matrices(value, groups))
    step = max(1, _BLOCK // max(1, groups * ky * kx * inputs * max(columns, 1)))  # rows of the result at a time

    def input_gradient(g: Array) -> Array:
        transposed = kernels.swapaxes(1, 2)[:, np.newaxis]
        gradients = _matrices(g, groups)
        spread = np.zeros_like(g, shape=(groups, vertical.used, kx * inputs, columns))
        for first in range(0, height, step):
            patches = np.matmul(transposed, gradients[:, first : first + step])
            patches = patches.reshape(*patches.shape[:2], ky, kx * inputs, columns)
            for a in range(ky):  # the rows of the image under row `first`, `first` + 1, ... of the result
                start = first * vertical.stride + a * vertical.dilation
                stop = start + (patches.shape[1] - 1) * vertical.stride + 1
                spread[:, start : stop : vertical.stride] += patches[:, :, a]
        return _gather(spread, geometry)

    def weight_gradient(g: Array, out_array: Array) -> None:
        patches = _patches(_spread(x, geometry), geometry)
        gradients = _matrices(g, groups).swapaxes(2, 3)
        total = np.zeros_like(g, shape=(groups, ky * kx * inputs, out))
        rows = max(1, _BLOCK // max(1, total.size))
        for first in range(0, height, rows):
            block = slice(first, first + rows)
            total += np.matmul(patches[:, block], gradients[:, block]).sum(axis=1)
        total = total.reshape(groups, ky, kx, inputs, out).transpose(0, 4, 3, 1, 2)
        out_array.reshape(total.shape)[...] = total

    return Convolved(value, lambda g: g, input_gradient, weight_gradient)


def _matrices(rows: Array, groups: int) -> Array:
    """Rows (height, channels, width, samples) as matrices (groups, height, channels / groups, width samples)."""
    height, channels, width, samples = rows.shape
    return rows.reshape(height, groups, channels // groups, width * samples).swapaxes(0, 1)


def _spread(x: Array, geometry: Geometry) -> Array:
    """The padded image once for each horizontal tap: (groups, rows, kx, in, columns of the result, samples)."""
    vertical, horizontal, groups = geometry.vertical, geometry.horizontal, geometry.groups
    if groups == horizontal.kernel == horizontal.stride == 1 and not any(
        (horizontal.before, horizontal.after, vertical.before, vertical.after)
    ):
        return x[np.newaxis, :, np.newaxis]
    images = by_group(x, groups)
    _, _, inputs, _, samples = images.shape
    spread = np.empty_like(x, shape=(groups, vertical.used, horizontal.kernel, inputs, horizontal.out, samples))
    above = min(vertical.before, vertical.used)
    inside = min(vertical.length, vertical.used - above)
    spread[:, :above] = 0
    spread[:, above + inside :] = 0
    body = spread[:, above : above + inside]
    for b in range(horizontal.kernel):
        columns, image_columns = horizontal.tap(b)
        body[:, :, b, :, : columns.start] = 0
        body[:, :, b, :, columns.stop :] = 0
        body[:, :, b, :, columns] = images[:, :inside, :, image_columns]
    return spread


def _gather(spread: Array, geometry: Geometry) -> Array:
    """The adjoint of `_spread`: sums the copies (groups, rows, kx in, columns samples) into rows of the image."""
    vertical, horizontal, groups = geometry.vertical, geometry.horizontal, geometry.groups
    inputs = geometry.in_channels // groups
    copies = spread.reshape(groups, vertical.used, horizontal.kernel, inputs, horizontal.out, geometry.batch)
    dx = np.zeros_like(spread, shape=(vertical.length, geometry.in_channels, horizontal.length, geometry.batch))
    images = by_group(dx, groups)
    above = min(vertical.before, vertical.used)
    inside = min(vertical.length, vertical.used - above)
    for b in range(horizontal.kernel):
        columns, image_columns = horizontal.tap(b)
        images[:, :inside, :, image_columns] += copies[:, above : above + inside, b, :, columns]
    return dx


def _patches(spread: Array, geometry: Geometry) -> Array:
    """The matrices (groups, rows of the result, ky kx in, columns samples): a view, they overlap in memory."""
    vertical = geometry.vertical
    groups, _, kx, inputs, width, samples = spread.shape
    (group, row, *_), item = spread.strides, spread.itemsize  # (the stride of an axis of length 1 may be anything)
    columns = width * samples
    if vertical.dilation == 1 or vertical.kernel == 1:
        shape = (groups, vertical.out, vertical.kernel * kx * inputs, columns)
        # a row of `spread` is kx in rows of the matrix
        return as_strided(spread, shape, (group, vertical.stride * row, columns * item, item), subok=True)
    # the rows under the kernel lie apart: they have to be copied together
    apart = as_strided(
        spread,
        (groups, vertical.out, vertical.kernel, kx * inputs * columns),
        (group, vertical.stride * row, vertical.dilation * row, item),
        subok=True,
    )
    return apart.reshape(groups, vertical.out, vertical.kernel * kx * inputs, columns)

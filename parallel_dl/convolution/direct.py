"""The definition of convolution, one tap of the kernel after the other.

y[n, k, i, j] = sum over c, a, b of weight[k, c, a, b] x[n, c, i s + a d - p, j s + b d - p], with x zero outside.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parallel_dl.convolution.geometry import Geometry
from parallel_dl.convolution.rows import Array, Convolved, by_group


def convolve(x: Array, weight: Array, geometry: Geometry) -> Convolved:
    """For every tap (a, b): weight[:, :, a, b] times the image that lies under it."""
    groups = geometry.groups
    height, width = geometry.vertical.out, geometry.horizontal.out
    kernels = weight.reshape(groups, geometry.out_channels // groups, *weight.shape[1:])  # (groups, out, in, ky, kx)
    images = by_group(x, groups)  # (groups, height, in, width, samples)

    def taps() -> Iterator[tuple[tuple, tuple, tuple]]:
        """(the tap in the kernel, where in the result, where in the image)."""
        for a in range(geometry.vertical.kernel):
            for b in range(geometry.horizontal.kernel):
                (rows, image_rows), (columns, image_columns) = geometry.vertical.tap(a), geometry.horizontal.tap(b)
                yield (..., a, b), (slice(None), rows, slice(None), columns), (
                    slice(None), image_rows, slice(None), image_columns,
                )  # fmt: skip

    value = np.zeros_like(x, shape=(height, geometry.out_channels, width, geometry.batch))
    results = by_group(value, groups)
    for tap, result, image in taps():
        results[result] += _product(kernels[tap], images[image])

    def input_gradient(g: Array) -> Array:
        dx = np.zeros_like(g, shape=x.shape)
        gradients, dimages = by_group(g, groups), by_group(dx, groups)
        for tap, result, image in taps():
            dimages[image] += _product(kernels[tap].swapaxes(1, 2), gradients[result])
        return dx

    def weight_gradient(g: Array, out: Array) -> None:
        gradients, dkernels = by_group(g, groups), out.reshape(kernels.shape)
        for tap, result, image in taps():
            dkernels[tap] = np.einsum("ghkwn,ghcwn->gkc", gradients[result], images[image], optimize=True)

    return Convolved(value, lambda g: g, input_gradient, weight_gradient)


def _product(kernel: Array, image: Array) -> Array:
    """(groups, k, c) times (groups, h, c, w, n), summed over c: (groups, h, k, w, n)."""
    groups, height, channels, width, samples = image.shape
    columns = image.reshape(groups, height, channels, width * samples)
    return np.matmul(kernel[:, np.newaxis], columns).reshape(groups, height, kernel.shape[1], width, samples)

"""The convolution theorem: spectra are multiplied, frequency by frequency (Mathieu et al. 2013, arXiv 1312.5851).

All images and kernels are transformed once, whatever the size of the kernel; over channels, the products are one small
matrix product per frequency. The image is padded to powers of two; a stride computes every pixel and keeps every s-th.
"""

from __future__ import annotations

import numpy as np

from parallel_dl.convolution.geometry import Axis, Geometry
from parallel_dl.convolution.rows import Array, Convolved


def size(axis: Axis) -> int:
    """The length of the transforms: the least power of two that holds the padded image."""
    return 1 << (axis.used - 1).bit_length()


def convolve(x: Array, weight: Array, geometry: Geometry) -> Convolved:
    """result = inverse(conj(spectrum of the kernel) * spectrum of the image): a correlation."""
    vertical, horizontal, groups = geometry.vertical, geometry.horizontal, geometry.groups
    sizes = size(vertical), size(horizontal)

    def spectrum(rows: Array) -> Array:
        """Rows (height, channels, width, samples) to (frequencies, frequencies, groups, channels, samples)."""
        transformed = np.fft.rfft2(rows, sizes, (0, 2)).transpose(0, 2, 1, 3)
        return transformed.reshape(*transformed.shape[:2], groups, rows.shape[1] // groups, rows.shape[3])

    def inverse(product: Array) -> Array:
        """(frequencies, frequencies, groups, channels, samples) to rows (height, channels, width, samples)."""
        *frequencies, of_groups, channels, samples = product.shape
        merged = product.reshape(*frequencies, of_groups * channels, samples).transpose(0, 2, 1, 3)
        return np.fft.irfft2(merged, sizes, (0, 2)).astype(x.dtype, copy=False)

    # where the image, the kernel's taps and the result's pixels lie among the pixels of the transform
    image = vertical.inside, slice(None), horizontal.inside
    taps = slice(0, vertical.extent, vertical.dilation), slice(None), slice(0, horizontal.extent, horizontal.dilation)
    pixels = (slice(0, (vertical.out - 1) * vertical.stride + 1, vertical.stride), slice(None),
              slice(0, (horizontal.out - 1) * horizontal.stride + 1, horizontal.stride))  # fmt: skip

    def placed(array: Array, where: tuple) -> Array:
        """Zeros of the transform's size with the array at these places; what lies beyond has no influence."""
        height, width = max(vertical.used, where[0].stop), max(horizontal.used, where[2].stop)
        canvas = np.zeros_like(array, shape=(height, array.shape[1], width, array.shape[3]))
        canvas[where] = array
        return canvas[: vertical.used, :, : horizontal.used]

    # kernels as rows (ky, in, kx, out): `in` is summed over in the result, `out` in the gradient of the image
    kernel_rows = weight.transpose(2, 1, 3, 0)
    in_per_group, out_per_group = weight.shape[1], geometry.out_channels // groups
    of_kernel = np.fft.rfft2(placed(kernel_rows, taps), sizes, (0, 2)).transpose(0, 2, 1, 3)
    of_kernel = of_kernel.reshape(*of_kernel.shape[:2], in_per_group, groups, out_per_group).transpose(0, 1, 3, 2, 4)
    of_image = spectrum(placed(x, image))  # (f, f, groups, in, samples)
    value = inverse(np.matmul(of_kernel.conj().swapaxes(3, 4), of_image))[pixels]

    def prepare(g: Array) -> Array:
        return spectrum(placed(g, pixels))  # (f, f, groups, out, samples)

    def input_gradient(of_gradient: Array) -> Array:
        whole = inverse(np.matmul(of_kernel, of_gradient))
        dx = np.zeros_like(whole, shape=x.shape)
        covered = whole[image]  # a stride may leave rows of the image uncovered
        dx[: covered.shape[0], :, : covered.shape[2]] = covered
        return dx

    def weight_gradient(of_gradient: Array, out: Array) -> None:
        products = np.matmul(of_gradient.conj(), of_image.swapaxes(3, 4))  # (f, f, groups, out, in)
        out[...] = inverse(products)[taps].transpose(1, 3, 0, 2)

    return Convolved(np.ascontiguousarray(value), prepare, input_gradient, weight_gradient)

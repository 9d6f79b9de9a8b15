"""The definition of convolution and pooling as loops over single numbers, and random cases of them."""

import itertools

import numpy as np
from hypothesis import strategies as st

from parallel_dl.convolution import Geometry
from parallel_dl.errors import InputError


def convolve(x, weight, stride, padding, dilation, groups):
    """y[n, k, i, j] = sum of weight[k, c, a, b] x[n, g C/G + c, i s + a d - p, ...], one product after the other."""
    samples, _, height, width = x.shape
    out, inputs, ky, kx = weight.shape
    (sy, sx), (py, px), (dy, dx) = stride, padding, dilation
    rows = (height + 2 * py - dy * (ky - 1) - 1) // sy + 1
    columns = (width + 2 * px - dx * (kx - 1) - 1) // sx + 1
    y = np.zeros((samples, out, rows, columns))
    for n, k, i, j in itertools.product(range(samples), range(out), range(rows), range(columns)):
        first = k // (out // groups) * inputs
        for c, a, b in itertools.product(range(inputs), range(ky), range(kx)):
            row, column = i * sy + a * dy - py, j * sx + b * dx - px
            if 0 <= row < height and 0 <= column < width:
                y[n, k, i, j] += weight[k, c, a, b] * x[n, first + c, row, column]
    return y


def _pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw, least_samples=0, kernels=None):
    """(x shape, weight shape, keyword arguments): odd sizes, strides beyond the kernel, more padding than needed."""
    groups = draw(st.integers(1, 3))
    channels, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = draw(_pairs(1, 5)) if kernels is None else kernels
    plain = kernels is not None
    sizes = {
        "stride": (1, 1) if plain else draw(_pairs(1, 6)),
        "padding": draw(_pairs(0, 4)),
        "dilation": (1, 1) if plain else draw(_pairs(1, 3)),
        "groups": groups,
    }
    image = draw(_pairs(1, 13))
    x_shape = (draw(st.integers(least_samples, 3)), channels, *image)
    weight_shape = (out, channels // groups, *kernel)
    try:
        Geometry.of(x_shape, weight_shape, **sizes)
    except InputError:  # a kernel larger than the image: enlarge the image
        grown = tuple(length + (k - 1) * d + 1 for length, k, d in zip(image, kernel, sizes["dilation"], strict=True))
        x_shape = (*x_shape[:2], *grown)
    return x_shape, weight_shape, sizes

"""Pooling: the maximum or the mean of the pixels in a window that moves over the image."""

from collections.abc import Iterator, Sequence

import numpy as np

from parallel_dl.autograd.tape import primitive
from parallel_dl.autograd.tensor import floating
from parallel_dl.convolution.geometry import Axis, axes, pad_pairs, pair, require_window_padding
from parallel_dl.errors import InputError

_BLOCK = 1 << 16  # values of the result that are dealt with at a time: they stay in the cache from pass to pass


def windows(shape: Sequence[int], kernel, stride, padding) -> tuple[Axis, Axis]:
    """The two directions (vertical, horizontal) of pooling in images of this shape; InputError when they do not fit."""
    if len(shape) != 4:
        raise InputError(f"needs an input of four axes (samples, channels, height, width), not {len(shape)}")
    require_window_padding(pair("kernel", kernel, 1), pad_pairs(padding))
    return axes(shape[2:], kernel, kernel if stride is None else stride, padding)


def _blocks(value, vertical, horizontal) -> Iterator[list[tuple]]:
    """Some rows of the result at a time; for each place in the window (where in the result, where in the image)."""
    step = max(1, _BLOCK * value.shape[2] // max(1, value.size))
    for first in range(0, value.shape[2], step):
        places = []
        for a in range(vertical.kernel):
            for b in range(horizontal.kernel):
                rows, image_rows = vertical.tap(a, first, step)
                columns, image_columns = horizontal.tap(b)
                places.append(((..., rows, columns), (..., image_rows, image_columns)))
        yield places


def _like(x, vertical, horizontal):
    """An array of the result's shape in x's order of memory."""
    return np.empty_like(x, shape=(*x.shape[:2], vertical.out, horizontal.out))


def _is_cut(axis: Axis) -> bool:
    """Whether the windows lie side by side and cover the image, so that every pixel is in exactly one."""
    return axis.kernel == axis.stride and not (axis.before or axis.after) and axis.used == axis.length


@primitive
def max_pool2d(x, *, kernel, stride=None, padding=0):
    """The largest pixel of every window; x (samples, channels, height, width), windows `kernel`, `stride` apart.

    `stride` is `kernel` unless given; padding counts as minus infinity. Of several largest pixels the first one, row by
    row, gets the gradient (as in PyTorch). Raises InputError when sizes do not fit together.
    """
    x = np.asarray(x, floating(x))
    vertical, horizontal = windows(x.shape, kernel, stride, padding)
    padded = bool(vertical.before or vertical.after or horizontal.before or horizontal.after)
    value = _like(x, vertical, horizontal)
    if padded:
        value[...] = -np.inf
    for places in _blocks(value, vertical, horizontal):
        for number, (result, image) in enumerate(places):
            if number or padded:
                np.maximum(value[result], x[image], out=value[result])
            else:
                value[result] = x[image]

    def gradient(g):
        cut = _is_cut(vertical) and _is_cut(horizontal)
        dx = np.empty_like(x, dtype=g.dtype) if cut else np.zeros_like(x, dtype=g.dtype)
        left = np.empty_like(value, dtype=g.dtype)  # in x's order of memory: what no pixel of its window has got yet
        left[...] = g
        for places in _blocks(value, vertical, horizontal):
            for result, image in places:
                remaining = left[result]
                is_largest = np.equal(x[image], value[result])
                if cut:
                    share = np.multiply(remaining, is_largest, out=dx[image])
                else:
                    share = np.multiply(remaining, is_largest)
                    dx[image] += share
                np.subtract(remaining, share, out=remaining)
        return dx

    return value, (gradient,)


@primitive
def avg_pool2d(x, *, kernel, stride=None, padding=0):
    """The mean of every window; padding counts as zeros (PyTorch's default). Otherwise like `max_pool2d`."""
    x = np.asarray(x, floating(x))
    vertical, horizontal = windows(x.shape, kernel, stride, padding)
    scale = np.asarray(1 / (vertical.kernel * horizontal.kernel), x.dtype)
    value = _like(x, vertical, horizontal)
    value[...] = 0
    for places in _blocks(value, vertical, horizontal):
        for result, image in places:
            value[result] += x[image]
    value *= scale

    def gradient(g):
        dx = np.zeros_like(x, dtype=g.dtype)
        shared = np.multiply(g, scale, out=np.empty_like(value, dtype=g.dtype))
        for places in _blocks(value, vertical, horizontal):
            for result, image in places:
                dx[image] += shared[result]
        return dx

    return value, (gradient,)

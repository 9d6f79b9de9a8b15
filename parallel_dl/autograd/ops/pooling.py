"""Pooling: the maximum or the mean of the pixels in a window that moves over the image."""

import numpy as np

from parallel_dl.autograd.tape import primitive
from parallel_dl.convolution.geometry import axes
from parallel_dl.errors import InputError


def _windows(x, kernel, stride, padding):
    """(vertical, horizontal) axes, and for each place in the window: (where in the result, where in the image)."""
    if x.ndim != 4:
        raise InputError(f"needs an input of four axes (samples, channels, height, width), not {x.ndim}")
    vertical, horizontal = axes(x.shape[2:], kernel, kernel if stride is None else stride, padding)
    for axis in (vertical, horizontal):
        if 2 * max(axis.before, axis.after) > axis.kernel:
            raise InputError(
                f"padding {max(axis.before, axis.after)} with a window of {axis.kernel}: windows would lie in the "
                f"padding alone; valid is at most {axis.kernel // 2}"
            )
    places = []
    for a in range(vertical.kernel):
        for b in range(horizontal.kernel):
            (rows, image_rows), (columns, image_columns) = vertical.tap(a), horizontal.tap(b)
            places.append(((..., rows, columns), (..., image_rows, image_columns)))
    return vertical, horizontal, places


def _pooled_like(x, vertical, horizontal, fill=None):
    """An array of the result's shape in x's order of memory."""
    shape = (*x.shape[:2], vertical.out, horizontal.out)
    return np.empty_like(x, shape=shape) if fill is None else np.full_like(x, fill, shape=shape)


def _tiles(axis):
    """Whether the windows lie side by side and cover all, so that every pixel is in exactly one."""
    return axis.kernel == axis.stride and not (axis.before or axis.after) and axis.used == axis.length


@primitive
def max_pool2d(x, *, kernel, stride=None, padding=0):
    """The largest pixel of every window; x (samples, channels, height, width), windows `kernel`, `stride` apart.

    `stride` is `kernel` unless given; padding counts as minus infinity. Of several largest pixels the first one, row by
    row, gets the gradient (as in PyTorch). Raises InputError when sizes do not fit together.
    """
    vertical, horizontal, places = _windows(x, kernel, stride, padding)
    padded = bool(vertical.before or vertical.after or horizontal.before or horizontal.after)
    value = _pooled_like(x, vertical, horizontal, -np.inf if padded else None)
    for number, (result, image) in enumerate(places):
        if number or padded:
            np.maximum(value[result], x[image], out=value[result])
        else:
            value[...] = x[image]

    def gradient(g):
        tiles = _tiles(vertical) and _tiles(horizontal)
        dx = np.empty_like(x, dtype=g.dtype) if tiles else np.zeros_like(x, dtype=g.dtype)
        left = np.empty_like(value, dtype=g.dtype)  # in x's order of memory; what no pixel of its window has yet
        left[...] = g
        for result, image in places[:-1]:
            remaining = left[result]
            share = np.equal(x[image], value[result]) * remaining
            np.subtract(remaining, share, out=remaining)
            if tiles:
                dx[image] = share
            else:
                dx[image] += share
        result, image = places[-1]
        last = left[result] if not padded else np.equal(x[image], value[result]) * left[result]
        if tiles:
            dx[image] = last
        else:
            dx[image] += last
        return dx

    return value, (gradient,)


@primitive
def avg_pool2d(x, *, kernel, stride=None, padding=0):
    """The mean of every window; padding counts as zeros (PyTorch's default). Otherwise like `max_pool2d`."""
    vertical, horizontal, places = _windows(x, kernel, stride, padding)
    scale = np.asarray(1 / (vertical.kernel * horizontal.kernel), x.dtype)
    value = _pooled_like(x, vertical, horizontal, 0)
    for result, image in places:
        value[result] += x[image]
    value *= scale

    def gradient(g):
        dx = np.zeros_like(x, dtype=g.dtype)
        shared = np.empty_like(value, dtype=g.dtype)
        np.multiply(g, scale, out=shared)
        for result, image in places:
            dx[image] += shared[result]
        return dx

    return value, (gradient,)

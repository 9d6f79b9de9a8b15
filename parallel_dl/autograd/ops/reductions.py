"""Sums, means and maxima over axes, and their pullbacks."""

import math

import numpy as np

from parallel_dl.autograd.tape import primitive


def _axes(axis, ndim):
    """The reduced axes as a tuple of numbers from 0 on."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(one % ndim for one in (axis if isinstance(axis, tuple) else (axis,)))


def _restore(g, shape, axes, keepdims):
    """g with the reduced axes put back with length 1, so that it broadcasts against the operand."""
    if keepdims:
        return g
    return g.reshape(tuple(1 if axis in axes else length for axis, length in enumerate(shape)))


@primitive
def sum(a, *, axis=None, keepdims=False):
    """The sum over `axis`: None (all), a number or a tuple."""
    axes = _axes(axis, a.ndim)
    return a.sum(axis=axes, keepdims=keepdims), (
        lambda g: np.broadcast_to(_restore(g, a.shape, axes, keepdims), a.shape),
    )


@primitive
def mean(a, *, axis=None, keepdims=False):
    """The arithmetic mean over `axis`: None (all), a number or a tuple. Of no elements it is not a number."""
    axes = _axes(axis, a.ndim)
    count = math.prod(a.shape[one] for one in axes)
    # times 1/count would round once more than the division
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.divide(a.sum(axis=axes, keepdims=keepdims), np.asarray(count, a.dtype))
    return value, (lambda g: np.broadcast_to(_restore(g, a.shape, axes, keepdims) / (count or 1), a.shape),)




@primitive
def max(a, *, axis=None, keepdims=False):
    """The maximum over `axis`: None (all), a number or a tuple. Equal maxima share the gradient evenly."""
    axes = _axes(axis, a.ndim)
    value = a.max(axis=axes, keepdims=keepdims)

    def gradient(g):
        winners = np.equal(a, _restore(value, a.shape, axes, keepdims))
        share = _restore(g, a.shape, axes, keepdims) / winners.sum(axis=axes, keepdims=True, dtype=a.dtype)
        return share * winners

    return value, (gradient,)

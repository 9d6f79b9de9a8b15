"""Sums, means and maxima over axes, and their pullbacks."""

import math

import numpy as np

from parallel_dl.autograd.tape import primitive


def _axes(axis, ndim):
    """The reduced axes, which NumPy has accepted, as numbers from 0 on."""
    if axis is None or ndim == 0:
        return range(ndim)
    return [one % ndim for one in (axis if isinstance(axis, tuple) else (axis,))]


def _restore(g, shape, axis, keepdims):
    """g with the reduced axes put back with length 1, so that it broadcasts against the operand."""
    if keepdims or axis is None:
        return g
    axes = _axes(axis, len(shape))
    return g.reshape([1 if i in axes else length for i, length in enumerate(shape)])


def _spread(g, a, axis):
    """g, of length 1 along the reduced axes, repeated to a's shape.

    In a's order of memory, so that what is added up after it is added in the same order wherever the tape is cut; the
    gradient of a sum over everything stays one number.
    """
    if axis is None:
        return np.broadcast_to(g, a.shape)
    whole = np.empty_like(a, dtype=g.dtype)
    whole[...] = g
    return whole


@primitive
def sum(a, *, axis=None, keepdims=False):
    """The sum over `axis`: None (all), a number or a tuple."""
    shape = a.shape
    value = a.sum(axis=axis, keepdims=keepdims)
    return value, (lambda g: _spread(_restore(g, shape, axis, keepdims), a, axis),)


@primitive
def mean(a, *, axis=None, keepdims=False):
    """The arithmetic mean over `axis`: None (all), a number or a tuple. Of no elements it is not a number."""
    shape = a.shape
    total = a.sum(axis=axis, keepdims=keepdims)
    count = math.prod([shape[one] for one in _axes(axis, a.ndim)])
    # times 1/count would round once more than the division
    value = total / count if count else total + np.nan
    return value, (lambda g: _spread(_restore(g, shape, axis, keepdims) / (count or 1), a, axis),)


@primitive
def max(a, *, axis=None, keepdims=False):
    """The maximum over `axis`: None (all), a number or a tuple. Equal maxima share the gradient evenly."""
    value = a.max(axis=axis, keepdims=keepdims)

    def gradient(g):
        winners = np.equal(a, _restore(value, a.shape, axis, keepdims))
        share = _restore(g, a.shape, axis, keepdims) / winners.sum(axis=axis, keepdims=True, dtype=a.dtype)
        return share * winners

    return value, (gradient,)

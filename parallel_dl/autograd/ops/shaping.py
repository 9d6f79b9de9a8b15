"""Operations that move elements and compute nothing: reshape, transpose, index, concatenate, split."""

import numpy as np

from parallel_dl.autograd.ops.elementwise import unbroadcast
from parallel_dl.autograd.tape import primitive
from parallel_dl.autograd.tensor import Tensor


@primitive
def reshape(a, *, shape):
    """The elements of a in another shape; one length may be -1."""
    return a.reshape(shape), (lambda g: g.reshape(a.shape),)


@primitive
def transpose(a, *, axes=None):
    """The axes of a, permuted; None reverses them."""
    inverse = None if axes is None else tuple(np.argsort([axis % a.ndim for axis in axes]))
    return a.transpose(axes), (lambda g: g.transpose(inverse),)


@primitive
def broadcast_to(a, *, shape):
    """a repeated to a larger shape, without a copy."""
    return np.broadcast_to(a, shape), (lambda g: unbroadcast(g, a.shape),)


def _is_basic(index):
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, (int, np.integer, slice)) for part in parts)


@primitive
def index(a, *, index):
    """a[index] for numbers, slices, None, ..., boolean masks and arrays of indices (which may repeat)."""
    if isinstance(index, tuple):
        index = tuple(part.data if isinstance(part, Tensor) else part for part in index)
    basic = _is_basic(index)
    value = a[index]

    def gradient(g):
        whole = np.zeros(a.shape, g.dtype)
        if basic:
            whole[index] = g
        else:
            np.add.at(whole, index, g)
        return whole

    return value, (gradient,)


@primitive
def concatenate(*arrays, axis=0):
    """The arrays one after the other along `axis`; empty ones are allowed."""
    value = np.concatenate(arrays, axis=axis)
    ends = np.cumsum([array.shape[axis] for array in arrays]).tolist()
    before = (slice(None),) * (axis % value.ndim)

    def part(start, end):
        return lambda g: g[(*before, slice(start, end))]

    return value, tuple(part(start, end) for start, end in zip([0, *ends], ends))


def stack(*arrays, axis=0):
    """The arrays, of one shape, along a new axis."""

    def widened(array):
        shape = list(np.shape(array.data if isinstance(array, Tensor) else array))
        shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, 1)
        return reshape(array, shape=tuple(shape))

    return concatenate(*(widened(array) for array in arrays), axis=axis)


@primitive
def split(a, *, sizes, axis=0):
    """a cut along `axis` into pieces of the given sizes, which must add up to its length: a tuple of tensors."""
    if sum(sizes) != a.shape[axis] or min(sizes, default=0) < 0:
        raise ValueError(f"sizes {tuple(sizes)} do not add up to the length {a.shape[axis]} of axis {axis}")
    ends = np.cumsum(sizes).tolist()
    before = (slice(None),) * (axis % a.ndim)
    values = tuple(a[(*before, slice(start, end))] for start, end in zip([0, *ends], ends))
    return values, (lambda gs: np.concatenate(gs, axis=axis),)

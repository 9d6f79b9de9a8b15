"""Normalisation over channels, over features and over the batch: each in one operation, beside its pullbacks.

Activations are (N, C, ...) whatever the order of the axes in memory: every result is laid out as its x is, and the work
goes over pieces of it that stay in the cache from one pass to the next.
"""

import math

import numpy as np

from parallel_dl.autograd.tape import once, primitive
from parallel_dl.autograd.tensor import floating
from parallel_dl.errors import number_of

_BLOCK = 262144  # values in a piece, about
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _pieces(array, axes):
    """Indices (a slice per axis) that together cover the array, cut along `axes`, the outermost in memory first."""
    order = sorted(axes, key=lambda axis: -abs(array.strides[axis]))
    cuts = _cut(array.shape, order, array.size)
    return [tuple(cut.get(axis, slice(None)) for axis in range(array.ndim)) for cut in cuts]


def _cut(shape, order, size):
    """Axis -> slice for each piece; `size` values are left to be cut along the axes `order`."""
    if size <= 2 * _BLOCK or not order:
        yield {}
        return
    axis, *rest = order
    length = shape[axis]
    rows = -(-length // (size // _BLOCK))  # pieces of one length but the last, and few: each costs calls
    for start in range(0, length, rows):
        for inner in _cut(shape, rest, size // length * rows):
            yield {axis: slice(start, start + rows), **inner}


# -- over neighbouring channels ------------------------------------------------------------------------------------
@primitive
def local_response_norm(x, *, size, alpha=1e-4, beta=0.75, k=1.0, groups=1):
    """x_c / s_c^beta, s_c = k + alpha/size * (sum of x^2 over the channels c - size//2 .. c + (size-1)//2).

    x is (N, C, ...). The window ends at the edges of each of `groups` equal blocks of channels (ValueError unless they
    are equal). Krizhevsky et al. 2012, section 3.3, with PyTorch's alpha/size in the place of alpha.
    """
    x = np.asarray(x, floating(x))
    channels = x.shape[1]
    if channels % groups:
        raise ValueError(f"{number_of(channels, 'channel')} cannot be divided into {number_of(groups, 'group')}")
    before, after = size // 2, (size - 1) // 2
    pieces = _pieces(x, [axis for axis in range(x.ndim) if axis != 1])
    value, sums = np.empty_like(x), np.empty_like(x)
    for piece in pieces:
        s = sums[piece]
        _window_sums(np.square(x[piece]), before, after, groups, s)
        s *= alpha / size
        s += k
        np.divide(x[piece], _power(s, beta), out=value[piece])

    # dL/dx_c = g_c / s_c^beta - 2 alpha/size beta x_c (sum over the i whose window holds c of g_i x_i / s_i^(beta+1))
    def gradient(g):
        result = np.empty_like(x)
        for piece in pieces:
            own, s, whole = x[piece], sums[piece], result[piece]
            np.divide(g[piece], _power(s, beta), out=whole)
            terms = whole * own
            terms /= s
            through_sums = np.empty_like(terms)
            _window_sums(terms, after, before, groups, through_sums)
            through_sums *= own
            through_sums *= 2 * alpha / size * beta
            whole -= through_sums
        return result

    return value, (gradient,)


def _window_sums(a, before, after, groups, out):
    """out[:, c] = sum of a[:, c - before .. c + after] inside each of the blocks of channels."""
    np.copyto(out, a)
    width = a.shape[1] // groups
    for start in range(0, width * groups, max(1, width)):
        stop = start + width
        for offset in range(1, min(before, width - 1) + 1):
            out[:, start + offset : stop] += a[:, start : stop - offset]
        for offset in range(1, min(after, width - 1) + 1):
            out[:, start : stop - offset] += a[:, start + offset : stop]


def _power(s, beta):
    """s^beta; the usual 3/4 by two square roots, several times as fast."""
    if beta != 0.75:
        return np.power(s, beta)
    root = np.sqrt(s)
    root *= np.sqrt(root)
    return root


# -- over the features of each sample ------------------------------------------------------------------------------
@primitive
def layer_norm(x, weight=None, bias=None, *, dimensions=1, eps=1e-5):
    """(x - mean) / sqrt(variance + eps) * weight + bias, statistics over the last `dimensions` axes.

    weight and bias have the shape of these axes, or are None. The variance divides by n (Ba et al. 2016, arXiv
    1607.06450, equation 4).
    """
    dtype = floating(x, weight, bias)
    leading = tuple(range(x.ndim - dimensions))
    features = tuple(range(x.ndim - dimensions, x.ndim))
    count = math.prod(x.shape[len(leading) :]) or 1
    letters = _LETTERS[: x.ndim]
    per_sample, per_feature = letters[: len(leading)], letters[len(leading) :]
    pieces = _pieces(x, leading)
    value, normal = np.empty_like(x, dtype), np.empty_like(x, dtype)
    inverse = np.empty((*x.shape[: len(leading)], *[1] * dimensions), dtype)  # 1 / sqrt(variance + eps)
    for piece in pieces:
        hat, scale = normal[piece], inverse[piece]
        np.subtract(x[piece], x[piece].sum(axis=features, keepdims=True, dtype=dtype) / count, out=hat)
        squares = np.einsum(f"{letters},{letters}->{per_sample}", hat, hat).reshape(scale.shape)
        np.divide(1, np.sqrt(squares / count + eps), out=scale)
        hat *= scale
        _affine(hat, weight, bias, value[piece])

    # with x^ the normalised x and h = g weight: dL/dx = (h - mean(h) - x^ mean(h x^)) / sqrt(variance + eps)
    def gradient_x(g):
        result = np.empty_like(normal)
        for piece in pieces:
            hat, whole, scale = normal[piece], result[piece], inverse[piece]
            h = g[piece] if weight is None else g[piece] * weight
            along = np.einsum(f"{letters},{letters}->{per_sample}", h, hat).reshape(scale.shape)
            np.multiply(hat, along / -count, out=whole)
            whole += h
            whole -= h.sum(axis=features, keepdims=True) / count
            whole *= scale
        return result

    return value, (
        gradient_x,
        lambda g: np.einsum(f"{letters},{letters}->{per_feature}", g, normal),
        lambda g: g.sum(axis=leading),
    )


def _affine(normal, weight, bias, out):
    """out = normal * weight + bias, either of which may be None."""
    if weight is None:
        np.copyto(out, normal)
    else:
        np.multiply(normal, weight, out=out)
    if bias is not None:
        out += bias


# -- over the batch ------------------------------------------------------------------------------------------------
@primitive
def batch_norm(x, weight=None, bias=None, *, eps=1e-5, mean=None, variance=None, observe=None):
    """(x - mean) / sqrt(variance + eps) * weight + bias for x (N, C, ...), all others (C,); weight, bias may be None.

    Without `mean` and `variance` they are those of x over all axes but the second, the variance divides by the number
    of values (Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1), and `observe(mean, variance, count)` is told
    them in float64. With both given they are constants (algorithm 2).
    """
    if mean is None:
        return _over_the_batch(x, weight, bias, lambda sums: sums, eps, observe)
    dtype = floating(x, weight, bias)
    inverse = 1 / np.sqrt(np.asarray(variance, np.float64) + eps)
    scale = inverse if weight is None else weight * inverse
    shift = -mean * scale if bias is None else bias - mean * scale
    mean, inverse, scale, shift = (_per_channel(x, array, dtype) for array in (mean, inverse, scale, shift))
    value = np.empty_like(x, dtype)
    for piece in _pieces(x, range(x.ndim)):
        np.multiply(x[piece], scale[:, piece[1]], out=value[piece])
        value[piece] += shift[:, piece[1]]
    others = _all_but_channels(x)
    return value, (
        lambda g: np.multiply(g, scale, out=np.empty_like(value)),
        lambda g: (g * ((x - mean) * inverse)).sum(axis=others),
        lambda g: g.sum(axis=others),
    )


@primitive(collective=True)
def synchronized_batch_norm(x, weight=None, bias=None, *, total, eps=1e-5, observe=None):
    """As `batch_norm`, over the x of all ranks, who call it together; `total(array)` sums their float64 arrays.

    The gradients of weight and bias are this rank's summands; that of x is whole.
    """
    return _over_the_batch(x, weight, bias, total, eps, observe)


def _over_the_batch(x, weight, bias, total, eps, observe):
    dtype = floating(x, weight, bias)
    others, products, pieces = _all_but_channels(x), _products(x), _pieces(x, range(x.ndim))
    centred, mean, variance, count = _centred(x, dtype, pieces, total)
    n = max(count, 1.0)
    if observe is not None:
        observe(mean, variance, int(count))

    inverse = 1 / np.sqrt(variance + eps)
    scale = _per_channel(x, inverse if weight is None else weight * inverse, dtype)
    shift = None if bias is None else _per_channel(x, bias, dtype)
    value = np.empty_like(x, dtype)
    for piece in pieces:
        y = np.multiply(centred[piece], scale[:, piece[1]], out=value[piece])
        if shift is not None:
            y += shift[:, piece[1]]

    @once
    def own_sums(g):
        """(2, C): the sums of g and of g (x - mean) over this x."""
        made = np.zeros((2, x.shape[1]))
        for piece in pieces:
            made[0, piece[1]] += g[piece].sum(axis=others)
            made[1, piece[1]] += np.einsum(products, g[piece], centred[piece])
        return made

    # dL/dx = scale (g - sum(g)/n - (x - mean) sum(g (x - mean)) / (n (variance + eps)))
    def gradient_x(g):
        along, across = total(own_sums(g)) / n
        along = _per_channel(x, along, dtype)
        across = _per_channel(x, -across * inverse**2, dtype)
        result = np.empty_like(centred)
        for piece in pieces:
            channel = piece[1]
            whole = np.multiply(centred[piece], across[:, channel], out=result[piece])
            whole += g[piece]
            whole -= along[:, channel]
            whole *= scale[:, channel]
        return result

    return value, (
        gradient_x,
        lambda g: (own_sums(g)[1] * inverse).astype(dtype),
        lambda g: own_sums(g)[0].astype(dtype),
    )


def _centred(x, dtype, pieces, total):
    """(x - mean, mean, variance, number of values per channel); sums are those that `total` gives.

    The mean is computed first, then the squared deviations: nothing cancels, however large the mean is.
    """
    channels, others, products = x.shape[1], _all_but_channels(x), _products(x)
    sums = np.zeros(channels + 1)
    sums[channels] = math.prod(x.shape[axis] for axis in others)
    for piece in pieces:
        sums[:channels][piece[1]] += x[piece].sum(axis=others)
    sums = total(sums)
    count = float(sums[channels])
    n = max(count, 1.0)
    mean = sums[:channels] / n
    centre = _per_channel(x, mean, dtype)
    centred = np.empty_like(x, dtype)
    squares = np.zeros(channels)
    for piece in pieces:
        d = np.subtract(x[piece], centre[:, piece[1]], out=centred[piece])
        squares[piece[1]] += np.einsum(products, d, d)
    return centred, mean, total(squares) / n, count


def _products(x):
    """What `np.einsum` is told for the sums, over all axes but that of the channels, of a product."""
    letters = _LETTERS[: x.ndim]
    return f"{letters},{letters}->b"


def _all_but_channels(x):
    return (0, *range(2, x.ndim))


def _per_channel(x, array, dtype):
    """A copy of (C,), which may change before backward, as (1, C, 1, ...): it broadcasts against x."""
    return np.array(array, dtype).reshape(1, len(array), *[1] * (x.ndim - 2))

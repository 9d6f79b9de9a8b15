"""The convolution of images as an operation on tensors; how it is computed is in parallel_dl.convolution."""

import numpy as np

from parallel_dl.autograd.tape import once, primitive
from parallel_dl.autograd.tensor import floating
from parallel_dl.convolution import Geometry, choose, from_rows, require_able, to_rows
from parallel_dl.errors import InputError


@primitive
def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, method="auto"):
    """x (samples, channels, height, width) * weight (out, channels / groups, ky, kx) + bias (out,) or None.

    Gives (samples, out, height', width'), height' = (height + 2 padding - dilation (ky - 1) - 1) // stride + 1. Each of
    stride, padding and dilation is a number or (vertical, horizontal); padding also ((top, bottom), (left, right)).
    `method` is one of `convolution.NAMES`. The memory of the result is in the order (height', out, width', samples).
    Raises InputError when sizes do not fit together, or the method cannot do it.
    """
    geometry = Geometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"needs a bias of shape {weight.shape[:1]}, got {bias.shape}")
    dtype = floating(x, weight, bias)
    able = require_able(choose(geometry, dtype) if method == "auto" else method, geometry)
    convolved = able.convolve(to_rows(x, dtype), np.ascontiguousarray(weight, dtype), geometry)
    value = convolved.value
    if bias is not None:
        value += bias[:, np.newaxis, np.newaxis]
    as_rows = once(lambda g: to_rows(g, dtype))
    prepared = once(lambda g: convolved.prepare(as_rows(g)))

    def gradient_weight(g, out=None):
        fits = out is not None and out.dtype == dtype and out.flags.c_contiguous
        gradient = out if fits else np.empty(weight.shape, dtype)
        convolved.weight_gradient(prepared(g), gradient)
        if out is not None and not fits:  # float64 images in a float32 network
            out[...] = gradient
        return gradient

    def gradient_bias(g):
        rows = as_rows(g)  # (height, out, width, samples)
        per_row = rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2] * rows.shape[3])
        return (per_row @ np.ones(per_row.shape[1], dtype)).reshape(rows.shape[:2]).sum(axis=0)

    return from_rows(value), (
        lambda g: from_rows(convolved.input_gradient(prepared(g))),
        gradient_weight,
        gradient_bias,
    )

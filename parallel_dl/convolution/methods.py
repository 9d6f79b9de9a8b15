"""The ways to convolve by name, and which one `auto` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from parallel_dl.convolution import direct, fft, im2col, winograd
from parallel_dl.convolution.geometry import Geometry
from parallel_dl.convolution.rows import Array, Convolved
from parallel_dl.errors import InputError, one_of, unknown_name


class Method(NamedTuple):
    """A way to convolve: what it does, and what of a convolution it cannot do (None when it can)."""

    convolve: Callable[[Array, Array, Geometry], Convolved]
    refusal: Callable[[Geometry], str | None] = lambda geometry: None


METHODS = {
    "direct": Method(direct.convolve),
    "im2col": Method(im2col.convolve),
    "fft": Method(fft.convolve),
    "winograd": Method(winograd.f2x2, winograd.refusal),
    "winograd4x4": Method(winograd.f4x4, winograd.refusal),
}
NAMES = ("auto", *METHODS)

# From how many channels of a group on, on either side, the transforms pay (benchmarks/convolution.py)
_CHANNELS = 32


def choose(geometry: Geometry, dtype: Any) -> str:
    """What `auto` takes, from the unsplit shape: never from the number of samples or of ranks.

    "winograd4x4", F(4x4, 3x3), in float32 for 3 x 3 kernels without stride or dilation, from 32 channels on either side
    (of a group) and results of 3 x 3 on: the fastest there, with a relative error of about 1e-5, where the other
    methods have 1e-6. Else "im2col"; in float64 always, so that sums of integers stay exact.
    """
    if (
        np.dtype(dtype) == np.float32
        and min(geometry.in_channels, geometry.out_channels) >= _CHANNELS * geometry.groups
        and min(geometry.vertical.out, geometry.horizontal.out) >= 3
        and winograd.refusal(geometry) is None
    ):
        return "winograd4x4"
    return "im2col"


def require_able(name: str, geometry: Geometry) -> Method:
    """The method of this name; InputError when there is none, or when it cannot do this convolution."""
    if name not in METHODS:
        raise unknown_name("convolution method", name, NAMES)
    reason = METHODS[name].refusal(geometry)
    if reason is not None:
        able = [other for other in METHODS if METHODS[other].refusal(geometry) is None]
        raise InputError(f"method {name!r} cannot do {reason}; {one_of(able)}")
    return METHODS[name]

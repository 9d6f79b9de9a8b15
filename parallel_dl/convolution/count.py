"""How many multiplications each method makes in a forward pass: by formula, and counted in a run.

Real multiplications are meant; a complex one is four. What is counted is what is executed: im2col multiplies the zeros
of the padding, too, and Winograd's transforms are matrix products in which many factors are 0 or 1. The exception are
the Fourier transforms themselves, which are NumPy's: for each that is made, a textbook's radix 2 is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.convolution import fft, winograd
from parallel_dl.convolution.geometry import Axis, Geometry
from parallel_dl.convolution.methods import require_able
from parallel_dl.convolution.rows import to_rows


def multiplications(method: str, geometry: Geometry) -> dict[str, int]:
    """{"products": ..., "transforms": ...} by formula; InputError for a method that cannot do this convolution."""
    require_able(method, geometry)
    return _FORMULAS[method](geometry)


def _definition(geometry: Geometry) -> dict[str, int]:
    """N K C/g, times the pairs (tap, pixel of the result) that meet the image and not the padding."""
    meetings = [_meetings(axis) for axis in (geometry.vertical, geometry.horizontal)]
    return {"products": _pairs(geometry) * geometry.batch * meetings[0] * meetings[1], "transforms": 0}


def _meetings(axis: Axis) -> int:
    taps = [axis.tap(k)[0] for k in range(axis.kernel)]
    return sum(rows.stop - rows.start for rows in taps)


def _im2col(geometry: Geometry) -> dict[str, int]:
    """N K H' W' C/g ky kx: the survey's work of a convolution (section 4.3)."""
    pixels = geometry.vertical.out * geometry.horizontal.out * geometry.batch
    return {"products": _pairs(geometry) * pixels * geometry.taps, "transforms": 0}


def _fft(geometry: Geometry) -> dict[str, int]:
    """Radix 2: n/2 log2 n complex multiplications for n values; of the last direction, half of the spectrum is kept."""
    height, width = fft.size(geometry.vertical), fft.size(geometry.horizontal)
    half = width // 2 + 1
    plane = 4 * (height * _radix2(width) + half * _radix2(height))
    images = geometry.batch * geometry.in_channels + _pairs(geometry)
    results = geometry.batch * geometry.out_channels
    return {
        "products": 4 * geometry.batch * _pairs(geometry) * height * half,
        "transforms": plane * (images + results) + results * height * width,  # inverse: divided by height width
    }


def _radix2(length: int) -> int:
    return length // 2 * (length.bit_length() - 1)


def _winograd(m: int) -> Callable[[Geometry], dict[str, int]]:
    def formula(geometry: Geometry) -> dict[str, int]:
        """(m+2)^2 K C/g for every tile; the transforms as matrix products."""
        down, across = winograd.tiles(m, geometry)
        tiles, square = down * across * geometry.batch, (m + 2) ** 2
        return {
            "products": square * _pairs(geometry) * tiles,
            "transforms": square * (9 * _pairs(geometry) + square * geometry.in_channels * tiles)
            + square * m * m * geometry.out_channels * tiles,
        }

    return formula


_FORMULAS = {
    "direct": _definition,
    "im2col": _im2col,
    "fft": _fft,
    "winograd": _winograd(2),
    "winograd4x4": _winograd(4),
}


def _pairs(geometry: Geometry) -> int:
    """Pairs of an output channel and an input channel that it sees."""
    return geometry.out_channels * (geometry.in_channels // geometry.groups)


# -- counted in a run ----------------------------------------------------------------------------------------------
def count_multiplications(method: str, geometry: Geometry) -> int:
    """Runs the method on arrays that count: all multiplications of one forward pass."""
    able = require_able(method, geometry)
    tally = [0]
    batch, in_channels = geometry.batch, geometry.in_channels
    x = np.ones((batch, in_channels, geometry.vertical.length, geometry.horizontal.length))
    kernel = geometry.vertical.kernel, geometry.horizontal.kernel
    weight = np.ones((geometry.out_channels, in_channels // geometry.groups, *kernel))
    able.convolve(_Counting.of(to_rows(x), tally), _Counting.of(weight, tally), geometry)
    return tally[0]


class _Counting(np.ndarray):
    """An array whose products are counted: multiply, matmul, and an FFT of two axes as radix 2."""

    tally: list[int]

    @classmethod
    def of(cls, array: Any, tally: list[int]) -> _Counting:
        counting = np.asarray(array).view(cls)
        counting.tally = tally
        return counting

    def __array_finalize__(self, parent: Any) -> None:
        if isinstance(parent, _Counting):
            self.tally = parent.tally

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: tuple = (), **named: Any) -> Any:
        plain = [np.asarray(one) for one in inputs]
        if out:
            named["out"] = tuple(np.asarray(one) for one in out)
        result = getattr(ufunc, method)(*plain, **named)
        if ufunc in (np.multiply, np.matmul):
            inner = plain[0].shape[-1] if ufunc is np.matmul else 1
            complex_ones = sum(one.dtype.kind == "c" for one in plain)
            self.tally[0] += result.size * inner * (1, 2, 4)[complex_ones]
        return out[0] if out else self.of(result, self.tally)

    def __array_function__(self, function: Any, types: Any, arguments: Any, named: Any) -> Any:
        if function in (np.fft.rfft2, np.fft.irfft2):
            return (self._rfft2 if function is np.fft.rfft2 else self._irfft2)(*arguments[1:])
        return super().__array_function__(function, types, arguments, named)

    def _rfft2(self, sizes: tuple[int, int], axes: tuple[int, int]) -> _Counting:
        height, width = sizes
        others = self.size // (self.shape[axes[0]] * self.shape[axes[1]])
        self.tally[0] += 4 * others * (height * _radix2(width) + (width // 2 + 1) * _radix2(height))
        return self.of(np.fft.rfft2(np.asarray(self), sizes, axes), self.tally)

    def _irfft2(self, sizes: tuple[int, int], axes: tuple[int, int]) -> _Counting:
        result = np.fft.irfft2(np.asarray(self), sizes, axes)
        height, width = sizes
        others = result.size // (height * width)
        self.tally[0] += 4 * others * (height * _radix2(width) + (width // 2 + 1) * _radix2(height)) + result.size
        return self.of(result, self.tally)

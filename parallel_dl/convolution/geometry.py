"""The sizes of one convolution (or pooling), and which of them fit together."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parallel_dl.errors import InputError, number_of, one_of

Pair = tuple[int, int]


def pair(name: str, value: Any, lowest: int) -> Pair:
    """A number, or two for (vertical, horizontal), as two; InputError for less than `lowest` or no whole numbers."""
    given = tuple(value) if isinstance(value, Sequence) else (value, value)
    try:
        vertical, horizontal = map(_whole, given)
        if min(vertical, horizontal) >= lowest:
            return vertical, horizontal
    except (TypeError, ValueError):
        pass
    raise InputError(f"{name} {value!r}: expected a whole number, at least {lowest}, or two: (vertical, horizontal)")


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(value)
    return operator.index(value)


def pad_pairs(value: Any) -> tuple[Pair, Pair]:
    """Padding as ((top, bottom), (left, right)); a number is for all sides, two are (vertical, horizontal)."""
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(side, Sequence) for side in value):
        return pair("padding", value[0], 0), pair("padding", value[1], 0)
    vertical, horizontal = pair("padding", value, 0)
    return (vertical, vertical), (horizontal, horizontal)


@dataclass(frozen=True)
class Axis:
    """One direction of the image: rows (vertical) or columns (horizontal)."""

    length: int
    kernel: int
    stride: int
    before: int
    """zeros before the first row"""
    after: int
    """zeros after the last row"""
    dilation: int

    @property
    def extent(self) -> int:
        """How many rows the dilated kernel reaches over."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def out(self) -> int:
        """Rows of the result."""
        return (self.length + self.before + self.after - self.extent) // self.stride + 1

    @property
    def used(self) -> int:
        """Rows of the padded image that the result depends on, from the first: a stride may leave some at the end."""
        return (self.out - 1) * self.stride + self.extent

    @property
    def inside(self) -> slice:
        """Where the image lies among the rows of the padded image."""
        return slice(self.before, self.before + self.length)

    def tap(self, k: int, first: int = 0, rows: int | None = None) -> tuple[slice, slice]:
        """Where tap k meets the image: (rows of the result, rows of the image), equally many; none in the padding.

        With `rows`, only so many rows of the result from `first` on are meant.
        """
        end = self.out if rows is None else min(self.out, first + rows)
        offset = k * self.dilation - self.before  # row of the image under the result's row 0
        low = min(max(first, -(offset // self.stride)), end)
        high = min(end, max(low, (self.length - 1 - offset) // self.stride + 1))
        start = low * self.stride + offset
        stop = start + (high - low - 1) * self.stride + 1 if high > low else start
        return slice(low, high), slice(start, stop, self.stride)


@dataclass(frozen=True)
class Geometry:
    """x (batch, in_channels, height, width) * weight (out_channels, in_channels / groups, ky, kx): all the sizes."""

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    vertical: Axis
    horizontal: Axis

    @classmethod
    def of(
        cls,
        x_shape: Sequence[int],
        weight_shape: Sequence[int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Geometry:
        """The sizes from the shapes, with PyTorch's meaning of the others; InputError when they do not fit.

        Each of stride, padding and dilation is a number or (vertical, horizontal); padding also
        ((top, bottom), (left, right)).
        """
        if len(x_shape) != 4:
            raise InputError(f"needs an input of four axes (samples, channels, height, width), not {len(x_shape)}")
        if len(weight_shape) != 4:
            raise InputError(f"needs a weight (out_channels, in_channels / groups, ky, kx), not {tuple(weight_shape)}")
        batch, channels, height, width = x_shape
        out_channels, per_group, *kernel = weight_shape
        require_groups(channels, out_channels, groups)
        if channels != per_group * groups:
            raise InputError(f"needs {number_of(per_group * groups, 'channel')}, got {channels}")
        return cls(batch, channels, out_channels, groups, *axes((height, width), kernel, stride, padding, dilation))

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(batch, out_channels, height, width) of the result."""
        return self.batch, self.out_channels, self.vertical.out, self.horizontal.out

    @property
    def taps(self) -> int:
        """Elements of the kernel in one channel."""
        return self.vertical.kernel * self.horizontal.kernel


def require_window_padding(kernel: Pair, padding: tuple[Pair, Pair]) -> None:
    """Raises InputError when a pooling window could lie in the padding alone: at most half of it may."""
    for length, sides in zip(kernel, padding):
        if 2 * max(sides) > length:
            raise InputError(f"padding {max(sides)} with a window of {length}: must be at most {length // 2}")


def axes(size: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> tuple[Axis, Axis]:
    """Both directions of an image of this size (height, width); InputError when the kernel does not fit into it."""
    kernels = pair("kernel", tuple(kernel) if isinstance(kernel, list) else kernel, 1)
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    both = [Axis(*one) for one in zip(size, kernels, strides, *zip(*pad_pairs(padding)), dilations)]
    if any(axis.length + axis.before + axis.after < axis.extent for axis in both):
        padded = " x ".join(str(axis.length + axis.before + axis.after) for axis in both)
        extents = " x ".join(str(axis.extent) for axis in both)
        least = " x ".join(str(max(1, axis.extent - axis.before - axis.after)) for axis in both)
        dilated = f" (dilated by {dilations[0]} x {dilations[1]})" if dilations != (1, 1) else ""
        raise InputError(
            f"a kernel of {extents}{dilated} is larger than the padded image of {padded}; "
            f"with this padding images from {least} on would fit"
        )
    return both[0], both[1]


def require_groups(in_channels: int, out_channels: int, groups: int) -> None:
    """Raises InputError when the groups do not divide the channels, with the numbers that would."""
    try:
        fits = _whole(groups) >= 1 and in_channels % groups == out_channels % groups == 0
    except TypeError:
        fits = False
    if not fits:
        most = min(in_channels, out_channels) or max(in_channels, out_channels)
        valid = [n for n in range(1, most + 1) if in_channels % n == out_channels % n == 0]
        raise InputError(
            f"groups {groups!r}: must divide {in_channels} input and {number_of(out_channels, 'output channel')}; "
            f"{one_of([*valid[:12], *['...'][: len(valid) - 12]])}"
        )

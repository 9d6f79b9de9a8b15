"""A convolution over leaves of its filters and input channels: im2col, with every product of blocks of fixed shapes.

The patches of a leaf of samples are one matrix (channels ky kx, pixels samples) for each leaf of channels; the weights
are blocks (filters, channels ky kx). The result is a sum over leaves of channels, the gradient of x one over leaves of
filters, added up as images: so ranks that have some of the filters add up what they send. The gradient of the weights
is one product per block, over all pixels and samples of a leaf. What is computed together is said in `linear`.

The filters of a group see its channels alone: each group is a convolution by itself, with the leaves of all filters as
far as they are in it. Its channels are never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from parallel_dl.autograd import once, primitive
from parallel_dl.convolution.geometry import Axis, axes
from parallel_dl.reproducible.leaves import Own, Run, runs
from parallel_dl.reproducible.linear import sums_of_pixels

Array = np.ndarray
_BLOCK = 1 << 20  # values of patches at a time
_KEPT = 1 << 22  # values of patches that are kept for backward; more are made again


class Group(NamedTuple):
    """One group's part of what a rank has: its filters, the channels it sees, as slices of these, and the leaves."""

    filters: slice
    channels: slice
    outputs: Own
    inputs: Own


@primitive
def conv2d(x, weight, bias=None, *, groups, stride, padding, dilation, together):
    """`ops.conv2d` over leaves: x (n, c, h, w), weight (leaves, o, c / groups, ky, kx), bias (leaves, o) or None.

    Gives (n, o, h', w'). The samples are as many leaves as there are weights, which are all equal: so each leaf has a
    gradient of its own. `groups` are those whose filters this rank has. What is added up over leaves is this rank's
    part of the sum, where others have the rest. `together` is as of `linear`.
    """
    dtype = np.result_type(x, weight)
    window = axes(x.shape[2:], weight.shape[3:], stride, padding, dilation)
    images = x.astype(dtype, copy=False)
    pixels = tuple(axis.out for axis in window)
    w = weight[0].astype(dtype, copy=False)
    value = np.empty((len(w), *pixels, len(x)), dtype)  # (o, h', w', n)
    of_groups = [
        _Convolution(group, images[:, group.channels], w[group.filters], window, len(weight), together)
        for group in groups
    ]
    for convolution in of_groups:
        convolution.forward(value[convolution.group.filters])
    if bias is not None:
        value += bias[0][:, np.newaxis, np.newaxis, np.newaxis]
    as_images = once(lambda g: np.asarray(g, dtype))  # (n, o, h', w')

    def gradient_x(g):
        gradient = np.zeros((*x.shape[1:], len(x)), dtype)
        for convolution in of_groups:
            own = convolution.group
            convolution.gradient_x(as_images(g)[:, own.filters], gradient[own.channels])
        return gradient.transpose(3, 0, 1, 2)

    def gradient_weight(g):
        gradient = np.zeros(weight.shape, dtype)
        for convolution in of_groups:
            own = convolution.group.filters
            convolution.gradient_weight(as_images(g)[:, own], gradient[:, own])
        return gradient

    def gradient_bias(g):
        return sums_of_pixels(as_images(g), len(weight))

    return value.transpose(3, 0, 1, 2), (gradient_x, gradient_weight, gradient_bias)


class _Convolution:
    """That of one group: images (n, c, h, w) * weight (o, c, ky, kx), for each leaf of samples by itself."""

    def __init__(
        self, group: Group, images: Array, weight: Array, window: tuple[Axis, Axis], leaves: int, together: bool
    ) -> None:
        self.group, self.images, self.weight, self.window = group, images, weight, window
        self.leaves, self.together = leaves, together
        vertical, horizontal = window
        self.taps = _taps(vertical, horizontal)
        self.pixels = vertical.out, horizontal.out
        rows = -(-len(images) // leaves) * vertical.out * horizontal.out  # of the matrix of the longest leaf, at most
        self.values = len(group.inputs.sizes) * group.inputs.block * len(self.taps) * rows
        kept = self.values * leaves <= _KEPT
        self._patches: dict[int, Array] | None = {} if kept else None

    def _runs(self, times: int = 1) -> Sequence[Run]:
        return runs(len(self.images), self.leaves, max(1, _BLOCK // max(1, times * self.values)))

    def patches(self, run: Run) -> Array:
        """The matrices of some leaves of samples: (I, count, block taps, pixels size)."""
        if self._patches is not None and run.leaves.start in self._patches:
            return self._patches[run.leaves.start]
        inputs = self.group.inputs
        stack = inputs.cut(run.of(self.images).transpose(0, 2, 3, 4, 1), 1)  # (I, count, block, h, w, size)
        patches = np.zeros((*stack.shape[:3], len(self.taps), *self.pixels, run.size), stack.dtype)
        for tap, ((rows, from_rows), (across, from_columns)) in enumerate(self.taps):
            patches[:, :, :, tap, rows, across] = stack[:, :, :, from_rows, from_columns]
        count, block, columns = run.count, inputs.block * len(self.taps), int(np.prod(self.pixels)) * run.size
        matrices = patches.reshape(len(inputs.sizes), count, block, columns)
        if self._patches is not None:
            self._patches[run.leaves.start] = matrices
        return matrices

    def forward(self, value: Array) -> None:
        """Writes into value (o, h', w', n)."""
        inputs = self.group.inputs
        for band in self.group.outputs.bands(self.together):
            kernels = inputs.cut(band.fill(self.weight, 0), 1)  # (I, N, block, ky, kx)
            kernels = kernels.reshape(len(inputs.sizes), 1, band.length, inputs.block * len(self.taps))
            for run in self._runs():
                total = inputs.add_up(np.matmul(kernels, self.patches(run)))  # (count, N, columns)
                own = band.take(total.reshape(run.count, band.length, *self.pixels, run.size), 1)
                run.of(value[band.part], 3)[...] = own.transpose(1, 2, 3, 0, 4)

    def gradient_x(self, g: Array, gradient: Array) -> None:
        """Writes into gradient (c, h, w, n), from g (n, o, h', w')."""
        outputs = self.group.outputs
        for band in self.group.inputs.bands(self.together):
            kernels = outputs.cut(band.fill(self.weight, 1), 0)  # (O, block, C, ky, kx)
            kernels = kernels.reshape(len(outputs.sizes), 1, outputs.block, band.length * len(self.taps))
            for run in self._runs(len(outputs.sizes)):
                stack = outputs.cut(run.of(g).transpose(0, 2, 3, 4, 1), 1)  # (O, count, block, h', w', size)
                columns = int(np.prod(self.pixels)) * run.size
                stack = stack.reshape(*stack.shape[:3], columns)
                of_patches = np.matmul(kernels.swapaxes(2, 3), stack)  # (O, count, C taps, columns)
                of_patches = of_patches.reshape(*stack.shape[:2], band.length, len(self.taps), *self.pixels, run.size)
                of_images = np.zeros((*of_patches.shape[:3], *self.images.shape[2:], run.size), g.dtype)
                for tap, ((rows, from_rows), (across, from_columns)) in enumerate(self.taps):
                    of_images[:, :, :, from_rows, from_columns] += of_patches[:, :, :, tap, rows, across]
                own = band.take(outputs.add_up(of_images), 1)
                run.of(gradient[band.part], 3)[...] = own.transpose(1, 2, 3, 0, 4)

    def gradient_weight(self, g: Array, gradient: Array) -> None:
        """Writes into gradient (leaves, o, c, ky, kx), from g (n, o, h', w')."""
        inputs = self.group.inputs
        for run in self._runs():
            patches = self.patches(run).swapaxes(2, 3)  # (I, count, columns, block taps)
            pixels = np.ascontiguousarray(run.of(g).transpose(0, 2, 3, 4, 1))  # (count, o, h', w', size)
            pixels = pixels.reshape(run.count, pixels.shape[1], patches.shape[2])
            for band in self.group.outputs.bands(self.together):
                blocks = np.matmul(band.fill(pixels, 1), patches)  # (I, count, N, block taps)
                kernels = (axis.kernel for axis in self.window)
                blocks = blocks.reshape(*blocks.shape[:3], inputs.block, *kernels)
                gradient[run.leaves, band.part] = band.take(inputs.join(blocks, 2), 1)


@cache
def _taps(vertical: Axis, horizontal: Axis) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """For each element of the kernel, both ways: (rows of the result, rows of the image under them)."""
    return [(vertical.tap(a), horizontal.tap(b)) for a in range(vertical.kernel) for b in range(horizontal.kernel)]

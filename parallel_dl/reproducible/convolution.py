"""A convolution over leaves of its filters and input channels: im2col, with every product of blocks of fixed shapes.

The patches of a sub-batch are one matrix (channels ky kx, pixels samples) for each leaf of channels; the weights are
blocks (filters, channels ky kx). The result is a sum over leaves of channels, the gradient of x one over leaves of
filters, added up as images: so ranks that have some of the filters add up what they send. The gradient of the weights
is one product per block, over all pixels and samples of the sub-batch.

The filters of a group see its channels alone: each group is a convolution by itself, with the leaves of all filters as
far as they are in it. Its channels are never cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from parallel_dl.autograd import Tensor, once, primitive
from parallel_dl.convolution.geometry import Axis, axes
from parallel_dl.reproducible.leaves import Leaves, Own
from parallel_dl.reproducible.linear import own_leaves, sum_over_samples

Array = np.ndarray


class Group(NamedTuple):
    """One group's part of what a rank has: its filters, the channels it sees, as slices of these, and the leaves."""

    filters: slice
    channels: slice
    outputs: Own
    inputs: Own


@primitive
def conv2d(x, weight, bias=None, *, groups, stride, padding, dilation):
    """`ops.conv2d` over leaves: x (n, c, h, w), weight (o, c / groups, ky, kx), bias (o,) or None.

    Gives (n, o, h', w'). `groups` are those whose filters this rank has. What is added up over leaves is this rank's
    part of the sum, where others have the rest.
    """
    dtype = np.result_type(x, weight)
    window = axes(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    images = x.transpose(1, 2, 3, 0).astype(dtype, copy=False)  # (c, h, w, n)
    pixels = (*(axis.out for axis in window), len(x))  # (h', w', n)
    value = np.empty((len(weight), *pixels), dtype)
    of_groups = []
    for group in groups:
        value[group.filters], *pullbacks = _convolve(
            images[group.channels], weight[group.filters].astype(dtype, copy=False), window, group
        )
        of_groups.append((group, *pullbacks))
    if bias is not None:
        value += bias[:, np.newaxis, np.newaxis, np.newaxis]
    as_images = once(lambda g: np.array(g.transpose(1, 2, 3, 0), dtype, order="C"))  # (o, h', w', n)

    def gradient_x(g):
        gradient = np.zeros(images.shape, dtype)
        for group, of_x, _ in of_groups:
            gradient[group.channels] = of_x(as_images(g)[group.filters])
        return gradient.transpose(3, 0, 1, 2)

    def gradient_weight(g):
        gradient = np.zeros(weight.shape, dtype)
        for group, _, of_weight in of_groups:
            gradient[group.filters] = of_weight(as_images(g)[group.filters])
        return gradient

    def gradient_bias(g):
        return sum_over_samples(np.asarray(g, dtype))

    return value.transpose(3, 0, 1, 2), (gradient_x, gradient_weight, gradient_bias)


def _convolve(
    images: Array, weight: Array, window: tuple[Axis, Axis], group: Group
) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array]]:
    """The images (c, h, w, n) * weight (o, c, ky, kx): (o, h', w', n), and its gradient to those of either."""
    vertical, horizontal = window
    inputs, outputs = group.inputs, group.outputs
    taps = _taps(vertical, horizontal)
    pixels = (vertical.out, horizontal.out, images.shape[3])
    count, block, columns = len(inputs.sizes), inputs.block, int(np.prod(pixels))
    stack = inputs.cut(images, 0)  # (I, block, h, w, n)
    patches = np.zeros((count, block, len(taps), *pixels), images.dtype)
    for tap, ((rows, from_rows), (across, from_columns)) in enumerate(taps):
        patches[:, :, tap, rows, across] = stack[:, :, from_rows, from_columns]
    patches = patches.reshape(count, block * len(taps), columns)
    kernels = inputs.cut(outputs.cut(weight, 0), 2)  # (I, O, block, block, ky, kx)
    kernels = kernels.reshape(count, len(outputs.sizes), outputs.block, block * len(taps))
    parts = np.matmul(kernels, patches[:, np.newaxis])  # (I, O, block, columns)
    value = outputs.join(inputs.add_up(parts), 0).reshape(len(weight), *pixels)

    def cut(g: Array) -> Array:
        return outputs.cut(g.reshape(len(weight), columns), 0)  # (O, block, columns)

    def gradient_x(g: Array) -> Array:
        of_patches = np.matmul(kernels.swapaxes(2, 3), cut(g))  # (I, O, block taps, columns)
        of_patches = of_patches.reshape(count, len(outputs.sizes), block, len(taps), *pixels)
        gradient = np.zeros((count, len(outputs.sizes), *stack.shape[1:]), g.dtype)
        for tap, ((rows, from_rows), (across, from_columns)) in enumerate(taps):
            gradient[:, :, :, from_rows, from_columns] += of_patches[:, :, :, tap, rows, across]
        return inputs.join(outputs.add_up(gradient.swapaxes(0, 1)), 0)

    def gradient_weight(g: Array) -> Array:
        blocks = np.matmul(cut(g), patches[:, np.newaxis].swapaxes(2, 3))  # (I, O, block, block taps)
        blocks = blocks.reshape(count, len(outputs.sizes), outputs.block, block, vertical.kernel, horizontal.kernel)
        return outputs.join(inputs.join(blocks, 2), 0)

    return value, gradient_x, gradient_weight


@cache
def _taps(vertical: Axis, horizontal: Axis) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """For each element of the kernel, both ways: (rows of the result, rows of the image under them)."""
    return [(vertical.tap(a), horizontal.tap(b)) for a in range(vertical.kernel) for b in range(horizontal.kernel)]


@dataclass(frozen=True)
class ConvolutionInLeaves:
    """What a Conv2d computes with: its leaves, all of them, of which a split layer's weight tells the rank's own."""

    inputs: Leaves
    outputs: Leaves
    groups: int
    settings: dict[str, Any]
    """stride, padding and dilation"""

    def __call__(self, x: Any, weight: Any, bias: Any = None) -> Tensor:
        """As `ops.conv2d`; x has the channels that the filters of this rank see."""
        return conv2d(x, weight, bias, groups=self.own_groups(weight), **self.settings)

    def own_groups(self, weight: Any) -> list[Group]:
        """The groups of which this rank has filters."""
        if self.groups == 1:
            outputs, inputs = own_leaves(weight, self.outputs, self.inputs)
            return [Group(slice(None), slice(None), outputs, inputs)]
        own = weight.piece[0] if weight.piece else slice(0, sum(self.outputs.sizes))
        wide, deep = sum(self.outputs.sizes) // self.groups, sum(self.inputs.sizes) // self.groups
        seen = own.start // wide if wide else 0  # the first group that is seen
        found = []
        for number in range(self.groups):
            whole = slice(number * wide, (number + 1) * wide)
            part = slice(max(own.start, whole.start), min(own.stop, whole.stop))
            if part.start < part.stop:
                filters = slice(part.start - own.start, part.stop - own.start)
                channels = slice((number - seen) * deep, (number - seen + 1) * deep)
                inputs = Leaves((deep,)).within()
                found.append(Group(filters, channels, self.outputs.inside(whole).within(_from(part, whole)), inputs))
        return found


def _from(part: slice, whole: slice) -> slice:
    """The part, counted from where the whole begins."""
    return slice(part.start - whole.start, part.stop - whole.start)

"""Split convolution and pooling: by filters, by input channels, or by tiles of the image.

    filters   rank r has some of the filters, and makes their channels of the result; x is whole on every rank, or for a
              grouped convolution the channels that these filters see
    channels  rank r has a slice of the input channels, and every filter's part for them; the results are summed
    tiles     rank r makes a tile of the result, with all weights, from the tile of x under it: rows (and columns) that
              other ranks own come as copies, and their gradients go back and are added; those of the weights are summed

How it is computed never depends on the split: the method is chosen for the unsplit shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.convolution import Geometry, choose
from parallel_dl.errors import InputError
from parallel_dl.model_parallel.axis import summed
from parallel_dl.mpi import Communicator, collectives
from parallel_dl.reproducible import add_bias
from parallel_dl.splits.placement import Shape
from parallel_dl.splits.tiles import Window


class _SplitConv2d(nn.Conv2d):
    """What split convolutions share. `input_shape` is that of one whole sample."""

    input_shape: Shape

    @property
    def whole(self) -> Geometry:
        """The unsplit convolution of one sample."""
        return Geometry.of((1, *self.input_shape), self.weight.whole_shape, **self._sizes)

    def convolve(self, x: Any, weight: Any, bias: Any, **changes: Any) -> Tensor:
        """A piece of it, by the method that the unsplit one takes."""
        if self.leaves is not None:
            return self.leaves(x, weight, bias)
        method = self.method
        if method == "auto":
            method = choose(self.whole, np.result_type(x.dtype, weight.dtype))
        try:
            return ops.conv2d(x, weight, bias, **{**self._sizes, **changes}, method=method)
        except InputError as error:
            raise self.input_error(x, str(error)) from None

    def nothing(self, x: Any, channels: int, rows: int, columns: int) -> Tensor:
        """An empty result, of a rank that has nothing to compute."""
        return Tensor(np.empty((x.shape[0], channels, rows, columns), np.result_type(x.dtype, self.weight.dtype)))


class FilterParallelConv2d(_SplitConv2d):
    """A Conv2d of which this rank has the filters `own`; x is the channels `seen` that they see."""

    own: slice
    seen: slice

    def forward(self, x: Any) -> Tensor:
        parts = list(self._parts())
        if not parts:  # fewer filters, or towers, than ranks
            return self.nothing(x, 0, self.whole.vertical.out, self.whole.horizontal.out)
        if len(parts) == 1 or self.leaves is not None:
            return self.convolve(x, self.weight, self.bias, groups=parts[0][2])
        outputs = []
        for filters, channels, groups in parts:
            bias = None if self.bias is None else ops.index(self.bias, index=filters)
            own_x, weight = ops.index(x, index=(slice(None), channels)), ops.index(self.weight, index=filters)
            outputs.append(self.convolve(own_x, weight, bias, groups=groups))
        return ops.concatenate(*outputs, axis=1)

    def _parts(self) -> Iterator[tuple[slice, slice, int]]:
        """(filters of ours, channels of x, groups): a part of a group's filters, or several groups in full."""
        per_group, seen_per_group = self.out_channels // self.groups, self.in_channels // self.groups
        at = self.own.start
        while at < self.own.stop:
            group, inside = divmod(at, per_group)
            groups = max(1, (self.own.stop - at) // per_group) if inside == 0 else 1
            stop = min(self.own.stop, (group + groups) * per_group)
            first, last = (edge * seen_per_group - self.seen.start for edge in (group, group + groups))
            yield slice(at - self.own.start, stop - self.own.start), slice(first, last), groups
            at = stop

    def describe(self) -> str:
        return f"{super().describe()}, filters {self.own.start} to {self.own.stop}"


class ChannelParallelConv2d(_SplitConv2d):
    """A Conv2d of which this rank has the weights for its slice of the input channels; the bias is added once."""

    comm: Communicator

    def forward(self, x: Any) -> Tensor:
        y = summed(self.convolve(x, self.weight, None), self.comm)
        if self.bias is not None and self.leaves is not None:
            return add_bias(y, self.bias)
        return y if self.bias is None else ops.add(y, ops.reshape(self.bias, shape=(self.out_channels, 1, 1)))

    def describe(self) -> str:
        return f"{super().describe()}, {self.weight.shape[1]} of the channels"


class TiledConv2d(_SplitConv2d):
    """A Conv2d that makes a tile of the result: `window` is (vertical, horizontal), x the image under it."""

    comm: Communicator
    window: tuple[Window, Window]

    def forward(self, x: Any) -> Tensor:
        # also on a rank without a tile: the others' gradients are summed with its zeros
        weight = collectives.replicate(self.weight, self.comm)
        bias = None if self.bias is None else collectives.replicate(self.bias, self.comm)
        rows, columns = (window.length for window in self.window)
        if not rows or not columns:
            return self.nothing(x, self.out_channels, rows, columns)
        return self.convolve(x, weight, bias, padding=_padding(self.window))

    def describe(self) -> str:
        return f"{super().describe()}, {_tile(self.window)}"


class TiledPool2d(nn.Module):
    """MaxPool2d or AvgPool2d, `layer`, that makes a tile of the result from the image under it."""

    window: tuple[Window, Window]
    operation: Any
    kernel_size: Any
    stride: Any

    def forward(self, x: Any) -> Any:
        rows, columns = (window.length for window in self.window)
        if not rows or not columns:
            return Tensor(np.empty((*x.shape[:2], rows, columns), x.dtype))
        return self.operation(x, kernel=self.kernel_size, stride=self.stride, padding=_padding(self.window))

    def describe(self) -> str:
        return _tile(self.window)


class TiledGlobalAvgPool2d(nn.GlobalAvgPool2d):
    """GlobalAvgPool2d's summand of this rank's tile; `pixels` is how many the whole image has."""

    pixels: int

    def forward(self, x: Any) -> Tensor:
        self.require(x)
        return ops.divide(ops.sum(x, axis=(2, 3), keepdims=True), self.pixels)


def _padding(window: tuple[Window, Window]) -> tuple[tuple[int, int], ...]:
    return tuple((line.before, line.after) for line in window)


def _tile(window: tuple[Window, Window]) -> str:
    rows, columns = (f"{line.out.start} to {line.out.stop}" for line in window)
    return f"rows {rows}, columns {columns} of the result"

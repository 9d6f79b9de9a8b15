"""The layers of convolutional networks: Conv2d and pooling. Images are (samples, channels, height, width)."""

import math
from typing import Any

from parallel_dl.autograd import Tensor, ops
from parallel_dl.autograd.ops.pooling import windows as pooling_windows
from parallel_dl.convolution import NAMES, Geometry, Pair, pair, require_able, require_groups
from parallel_dl.convolution.geometry import Axis, pad_pairs, require_window_padding
from parallel_dl.errors import InputError, unknown_name
from parallel_dl.nn.initializers import uniform
from parallel_dl.nn.module import Module
from parallel_dl.nn.operations import Operations
from parallel_dl.nn.parameter import Parameter
from parallel_dl.nn.shapes import OneSample, Shape

Size = int | Pair  # a number, or (vertical, horizontal)


class Conv2d(Module):
    """Convolution: (n, in_channels, h, w) -> (n, out_channels, h', w'), PyTorch's arguments and sizes.

    weight (out_channels, in_channels / groups, ky, kx) and bias (out_channels,) start uniform in +-1/sqrt(fan in),
    PyTorch's default. `padding` adds zeros. `method` selects the algorithm (`parallel_dl.convolution`): direct, im2col,
    fft, winograd (F(2x2, 3x3)), winograd4x4 (F(4x4, 3x3)), or auto: in float32, winograd4x4 for 3 x 3 kernels with at
    least 32 input and output channels per group (the fastest, with a relative error of about 1e-5), otherwise im2col;
    see `convolution.choose`. Raises InputError for arguments, or an input, that do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        method: str = "auto",
    ) -> None:
        super().__init__()
        if not all(isinstance(channels, int) and channels >= 0 for channels in (in_channels, out_channels)):
            raise InputError(f"Conv2d({in_channels}, {out_channels}, ...): channels must be whole numbers from 0 on")
        try:
            require_groups(in_channels, out_channels, groups)
            self.kernel_size, self.padding = pair("kernel_size", kernel_size, 1), pair("padding", padding, 0)
            self.stride, self.dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
        except InputError as error:
            raise InputError(f"Conv2d({in_channels}, {out_channels}, {kernel_size}, ...): {error}") from None
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        if method not in NAMES:
            raise unknown_name("convolution method", str(method), NAMES)
        self.method = method
        fan_in = in_channels // groups * math.prod(self.kernel_size)
        bound = 1 / math.sqrt(max(1, fan_in))
        self.weight = Parameter((out_channels, in_channels // groups, *self.kernel_size), uniform(bound))
        self.bias = Parameter((out_channels,), uniform(bound)) if bias else None
        if method != "auto":
            # whether it can does not depend on the image: one that is surely large enough
            height, width = ((k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation))
            try:
                require_able(method, Geometry.of((1, in_channels, height, width), self.weight.shape, **self._sizes))
            except InputError as error:
                raise InputError(f"Conv2d({self.describe()}): {error}") from None

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def geometry(self, x: Any) -> Geometry:
        """All sizes for an input of x's shape; InputError, naming the layer, if it does not fit."""
        try:
            return Geometry.of(x.shape, self.weight.shape, **self._sizes)
        except InputError as error:
            raise self.input_error(x, str(error)) from None

    def forward(self, x: Any) -> Tensor:
        try:
            return ops.conv2d(x, self.weight, self.bias, **self._sizes, method=self.method)
        except InputError as error:
            raise self.input_error(x, str(error)) from None

    def output_shape(self, input_shape: Shape) -> Shape:
        """(in_channels, h, w) -> (out_channels, h', w'); InputError for an image that does not fit."""
        return self.geometry(OneSample(input_shape)).out_shape[1:]

    def operations(self, input_shape: Shape) -> Operations:
        """W = N Cout H' W' Cin Ky Kx, D = log2 Cin + log2 Ky + log2 Kx, with Cin the channels of one group."""
        sums = self.in_channels // self.groups, *self.kernel_size
        products = math.prod(self.output_shape(input_shape)) * math.prod(sums)
        return Operations(products, sums, multiply_adds=products)

    def describe(self) -> str:
        ky, kx = self.kernel_size
        more = [f"{self.in_channels} -> {self.out_channels}", f"kernel {ky} x {kx}"]
        for name, plain in (("stride", 1), ("padding", 0), ("dilation", 1)):
            vertical, horizontal = getattr(self, name)
            if (vertical, horizontal) != (plain, plain):
                more.append(f"{name} {vertical}" if vertical == horizontal else f"{name} {vertical} x {horizontal}")
        if self.groups > 1:
            more.append(f"{self.groups} groups")
        if self.bias is None:
            more.append("no bias")
        if self.method != "auto":
            more.append(self.method)
        return ", ".join(more)


class _Pool2d(Module):
    """What the pooling layers share: windows of `kernel_size`, `stride` apart (`kernel_size` unless given)."""

    operation: Any

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        super().__init__()
        try:
            self.kernel_size, self.padding = pair("kernel_size", kernel_size, 1), pair("padding", padding, 0)
            self.stride = self.kernel_size if stride is None else pair("stride", stride, 1)
            require_window_padding(self.kernel_size, pad_pairs(self.padding))
        except InputError as error:
            raise InputError(f"{type(self).__name__}({kernel_size}, ...): {error}") from None

    def windows(self, x: Any) -> tuple[Axis, Axis]:
        """The two directions (vertical, horizontal) for an x of this shape; InputError if it does not fit."""
        try:
            return pooling_windows(x.shape, self.kernel_size, self.stride, self.padding)
        except InputError as error:
            raise self.input_error(x, str(error)) from None

    def forward(self, x: Any) -> Tensor:
        try:
            return type(self).operation(x, kernel=self.kernel_size, stride=self.stride, padding=self.padding)
        except InputError as error:
            raise self.input_error(x, str(error)) from None

    def output_shape(self, input_shape: Shape) -> Shape:
        """(c, h, w) -> (c, h', w'); InputError for an image that does not fit."""
        vertical, horizontal = self.windows(OneSample(input_shape))
        return input_shape[0], vertical.out, horizontal.out

    def operations(self, input_shape: Shape) -> Operations:
        """W = N C H W, D = log2 Ky + log2 Kx."""
        return Operations(math.prod(input_shape), self.kernel_size)

    def describe(self) -> str:
        values = {"window": self.kernel_size, "stride": self.stride, "padding": self.padding}
        return ", ".join(f"{name} {a} x {b}" for name, (a, b) in values.items() if (a, b) != (0, 0))


class MaxPool2d(_Pool2d):
    """The largest pixel of each window; windows overlap when `stride` is smaller than `kernel_size`.

    (n, c, h, w) -> (n, c, (h + 2 padding - kernel) // stride + 1, ...). If several pixels are largest, the first one
    gets the gradient.
    """

    operation = staticmethod(ops.max_pool2d)


class AvgPool2d(_Pool2d):
    """The mean of each window, with padding counted as zeros; sizes as in MaxPool2d."""

    operation = staticmethod(ops.avg_pool2d)


class GlobalAvgPool2d(Module):
    """The mean of each whole image: (n, c, h, w) -> (n, c, 1, 1)."""

    def require(self, x: Any) -> None:
        """Raises InputError for an x that is not a batch of images."""
        if len(x.shape) != 4:
            raise self.input_error(x, "needs (samples, channels, height, width)")

    def forward(self, x: Any) -> Tensor:
        self.require(x)
        return ops.mean(x, axis=(2, 3), keepdims=True)

    def output_shape(self, input_shape: Shape) -> Shape:
        """(c, h, w) -> (c, 1, 1); InputError for anything but an image."""
        self.require(OneSample(input_shape))
        return input_shape[0], 1, 1

    def operations(self, input_shape: Shape) -> Operations:
        """As for pooling, over the whole image."""
        return Operations(math.prod(input_shape), input_shape[1:])

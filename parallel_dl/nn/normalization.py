"""Normalisation layers: over neighbouring channels, over the batch, over the features of each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, ops
from parallel_dl.errors import InputError
from parallel_dl.nn.initializers import constant
from parallel_dl.nn.module import Module
from parallel_dl.nn.operations import Operations
from parallel_dl.nn.parameter import Parameter
from parallel_dl.nn.shapes import OneSample, Shape

STATISTICS = ("global", "local")


class _Normalization(Module):
    """Base of normalisation layers: the shape stays, and an input that does not fit is refused."""

    def require(self, x: Any) -> None:
        """Raises InputError for an x that does not fit."""
        raise NotImplementedError

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of the input; InputError for one that does not fit."""
        self.require(OneSample(input_shape))
        return input_shape


class LocalResponseNorm(_Normalization):
    """y_c = x_c / (k + alpha/size * sum of x^2 over the `size` channels around c)^beta, for x (N, C, ...).

    The window is c - size//2 .. c + (size-1)//2, cut off at the edges of each of `groups` equal blocks of channels
    (AlexNet's two towers, each on its own GPU: groups=2). Krizhevsky et al. 2012, section 3.3, do not divide alpha by
    size; PyTorch does, and so do we: the paper's alpha of 1e-4 with size 5 is alpha=5e-4 here. Raises InputError if
    `groups` does not divide C.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, groups: int = 1) -> None:
        super().__init__()
        if size < 1 or groups < 1:
            raise InputError(f"LocalResponseNorm(size={size}, groups={groups}): both must be at least 1")
        self.size, self.alpha, self.beta, self.k, self.groups = size, alpha, beta, k, groups

    def require(self, x: Any) -> None:
        """Raises InputError for an x whose channels the groups do not divide."""
        if len(x.shape) < 2 or x.shape[1] % self.groups:
            towers = f", C a multiple of {self.groups}" if self.groups > 1 else ""
            raise self.input_error(x, f"needs (N, C, ...){towers}")

    def forward(self, x: Any) -> Tensor:
        self.require(x)
        return ops.local_response_norm(
            x, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k, groups=self.groups
        )

    def operations(self, input_shape: Shape) -> Operations:
        """As for pooling over `size` channels (the survey has no row for it): W = N C H W, D = log2 size."""
        return Operations(math.prod(input_shape), (self.size,))

    def describe(self) -> str:
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}{groups}"


class BatchNorm(_Normalization):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias for x (N, features, ...), one mean per feature.

    In training, the statistics are those of the microbatch, over all axes but the second, and each forward pass moves
    `running_mean` and `running_var` (unbiased) towards them by `momentum`; evaluation uses these two (Ioffe and Szegedy
    2015, arXiv 1502.03167). Weight starts at 1, bias at 0; without `affine` there are none.

    The statistics cover the whole microbatch even if data parallelism divides it: `data_parallel` then sets `total`,
    and the ranks meet in forward and backward. `statistics="local"` uses each rank's own share instead, which is not
    the serial computation. Raises InputError for the wrong shape, and in training for a single value per feature, whose
    variance is unknown.
    """

    shapes: tuple[tuple[str, ...], ...] = ()  # the axes after the features in what this layer takes; () is any

    running_mean: np.ndarray
    running_var: np.ndarray

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        statistics: str = "global",
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        if features < 0:
            raise InputError(f"{kind}({features}): the number of features must not be negative")
        if not eps >= 0:
            raise InputError(f"{kind}(eps={eps}): must be at least 0")
        if momentum is None or not 0 <= momentum <= 1:
            raise InputError(f"{kind}(momentum={momentum}): must be in 0..1")
        if statistics not in STATISTICS:
            raise InputError(f"{kind}(statistics={statistics!r}): expected one of {', '.join(STATISTICS)}")
        self.features, self.eps, self.momentum, self.statistics = features, eps, momentum, statistics
        self.weight = Parameter((features,), constant(1.0)) if affine else None
        self.bias = Parameter((features,), constant(0.0)) if affine else None
        self.register_buffer("running_mean", np.zeros(features, self.dtype))
        self.register_buffer("running_var", np.ones(features, self.dtype))
        self.total: Callable[[np.ndarray], np.ndarray] | None = None  # sums arrays of float64 over the ranks

    # a copy is a network of this rank alone until data parallelism takes it
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "total": None}

    def forward(self, x: Any) -> Tensor:
        self.require(x)
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return ops.batch_norm(x, self.weight, self.bias, eps=self.eps, mean=mean, variance=variance)

        def observe(mean: np.ndarray, variance: np.ndarray, count: int) -> None:
            self.observe(x, mean, variance, count)

        if self.total is None:
            return ops.batch_norm(x, self.weight, self.bias, eps=self.eps, observe=observe)
        return ops.synchronized_batch_norm(x, self.weight, self.bias, total=self.total, eps=self.eps, observe=observe)

    def require(self, x: Any) -> None:
        """Raises InputError for an x of the wrong shape."""
        _, *features = x.shape or (0,)
        own = len(self.running_mean)  # fewer than `features` on a rank that has a slice of them
        if features[:1] != [own] or (self.shapes and len(features) - 1 not in map(len, self.shapes)):
            shapes = [(own, *rest) for rest in self.shapes or (("...",),)]
            valid = [f"(N, {', '.join(map(str, shape))})" for shape in shapes]
            raise self.input_error(x, f"needs {' or '.join(valid)}")

    def operations(self, input_shape: Shape) -> Operations:
        """W = N C H W, D = log2 N."""
        return Operations(math.prod(input_shape), over_samples=True)

    def observe(self, x: Any, mean: np.ndarray, variance: np.ndarray, count: int) -> None:
        """Moves the running statistics towards those of `count` values per feature (variance divided by count)."""
        if count == 1:
            raise self.input_error(x, "one value per feature: training needs at least 2, or eval()")
        if count == 0:
            return
        for running, batch in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
            running[...] = (1 - self.momentum) * running + self.momentum * batch

    def describe(self) -> str:
        local = ", local statistics" if self.statistics == "local" else ""
        return f"{self.features}, eps={self.eps}, momentum={self.momentum}{local}"


class BatchNorm1d(BatchNorm):
    """As `BatchNorm`, for x (N, features) or (N, features, L)."""

    shapes = ((), ("L",))


class BatchNorm2d(BatchNorm):
    """As `BatchNorm`, for x (N, features, H, W)."""

    shapes = (("H", "W"),)


class LayerNorm(_Normalization):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, statistics over the last axes: x (..., *normalized_shape).

    Each sample has its own statistics, in training and evaluation alike (Ba et al. 2016, arXiv 1607.06450). weight (1
    at the start) and bias (0) have `normalized_shape`, a number or several; without `elementwise_affine` there are
    none. Raises InputError for the wrong shape.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not shape or min(shape) < 1:
            raise InputError(f"LayerNorm({normalized_shape}): every length must be at least 1")
        self.normalized_shape, self.eps = shape, eps
        self.weight = Parameter(shape, constant(1.0)) if elementwise_affine else None
        self.bias = Parameter(shape, constant(0.0)) if elementwise_affine and bias else None

    def require(self, x: Any) -> None:
        """Raises InputError for an x that does not end with `normalized_shape`."""
        if tuple(x.shape[-len(self.normalized_shape) :]) != self.normalized_shape:
            raise self.input_error(x, f"needs (..., {', '.join(map(str, self.normalized_shape))})")

    def forward(self, x: Any) -> Tensor:
        self.require(x)
        return ops.layer_norm(x, self.weight, self.bias, dimensions=len(self.normalized_shape), eps=self.eps)

    def operations(self, input_shape: Shape) -> Operations:
        """As for batch norm, over the features of a sample: W = N features, D = log2 features."""
        return Operations(math.prod(input_shape), (math.prod(self.normalized_shape),))

    def describe(self) -> str:
        return f"{', '.join(map(str, self.normalized_shape))}, eps={self.eps}"

"""The losses. Each is a sum over the samples given, divided by `total`: the number of samples in the global batch.

With data parallelism a rank sees a share of the batch; dividing by the global number makes the ranks' losses, and
their gradients, summands of the whole.
"""

import math
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, ops
from parallel_dl.autograd.ops.classification import one_hot
from parallel_dl.errors import InputError


def _array(value: Any) -> np.ndarray:
    return value.data if isinstance(value, Tensor) else np.asarray(value)


def cross_entropy(logits: Any, targets: Any, total: float | None = None) -> Tensor:
    """-log softmax(logits)[target], summed over the samples and divided by `total` (default: their number).

    logits (samples, classes), targets (samples,) integers of any type in 0..classes-1; InputError otherwise. total=1 is
    the sum.
    """
    targets = _array(targets)
    return ops.cross_entropy(logits, targets=targets, total=_total(total, targets.size))


def logistic_loss(logits: Any, targets: Any, total: float | None = None) -> Tensor:
    """Each class as a yes/no question: log(1 + exp(-z)) for the target class plus log(1 + exp(z)) for all others.

    Summed over samples and classes, and divided by `total` (default: the number of samples). logits (samples, classes);
    targets (samples,) integers in 0..classes-1, or (samples, classes) answers t in 0..1, each of which adds t log(1 +
    exp(-z)) + (1 - t) log(1 + exp(z)). InputError otherwise, also for booleans. This is PyTorch's
    binary_cross_entropy_with_logits with reduction="sum", divided by `total`.

    Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, trains with it:
    unlike cross-entropy, it has no sum over all classes inside a logarithm, so a last layer whose classes are split
    across ranks needs no exchange (`ops.logistic_loss` takes a slice of the classes).
    """
    targets = _array(targets)
    if targets.shape == tuple(logits.shape[:-1]):
        targets = one_hot(targets, logits.shape[-1], logits.dtype, "logistic_loss")
    return ops.logistic_loss(logits, targets=targets, total=_total(total, math.prod(logits.shape[:-1])))


def mse(predictions: Any, targets: Any, total: float | None = None) -> Tensor:
    """(prediction - target)**2, summed over all values and divided by `total` (default: the number of values).

    predictions and targets have the same shape, and targets are numbers, not booleans; InputError otherwise. For the
    mean over a global batch, total = samples x values per sample.
    """
    if tuple(predictions.shape) != tuple(targets.shape):
        raise InputError(f"mse: predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ")
    if targets.dtype.kind not in "iufc":
        raise InputError(f"mse: targets must be numbers, not {targets.dtype}")
    difference = ops.subtract(predictions, targets)
    return ops.divide(ops.sum(ops.power(difference, 2)), _total(total, difference.size))


def _total(total: float | None, count: int) -> float:
    return max(count, 1) if total is None else total

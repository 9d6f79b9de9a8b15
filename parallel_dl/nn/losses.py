"""The losses. Each is a sum over the samples given, divided by `total`: the number of samples in the global batch.

With data parallelism a rank sees a share of the batch; dividing by the global number makes the ranks' losses, and
their gradients, summands of the whole.
"""

from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, ops


def _array(value: Any) -> np.ndarray:
    return value.data if isinstance(value, Tensor) else np.asarray(value)


def cross_entropy(logits: Any, targets: Any, total: float | None = None) -> Tensor:
    """-log softmax(logits)[target], summed over the samples and divided by `total` (default: their number).

    logits (samples, classes), targets (samples,) integers in 0..classes-1; ValueError otherwise. total=1 is the sum.
    """
    targets = _array(targets)
    if targets.dtype.kind not in "iu":
        raise ValueError(f"cross_entropy: targets must be integers, not {targets.dtype}")
    if tuple(logits.shape[:-1]) != targets.shape:
        raise ValueError(f"cross_entropy: logits {tuple(logits.shape)} do not fit targets {targets.shape}")
    return ops.cross_entropy(logits, targets=targets, total=_total(total, targets.size))


def mse(predictions: Any, targets: Any, total: float | None = None) -> Tensor:
    """(prediction - target)**2, summed over all values and divided by `total` (default: the number of values).

    Both of one shape; ValueError otherwise. For the mean over a global batch, total = samples x values per sample.
    """
    if tuple(predictions.shape) != tuple(targets.shape):
        raise ValueError(f"mse: predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ")
    difference = ops.subtract(predictions, targets)
    return ops.divide(ops.sum(ops.power(difference, 2)), _total(total, difference.size))


def _total(total: float | None, count: int) -> float:
    return max(count, 1) if total is None else total

"""Losses of class scores if each rank has a slice of the classes, or a share of the samples.

    cross_entropy   the maximum and the sum of exponentials of each sample are combined: 3 values per sample
    logistic_loss   each class is a question of its own (Krizhevsky 2014, arXiv 1404.5997): nothing is exchanged
    mse             as the logistic loss

The last two give each rank its summand of the loss, as any loss does of a share of the samples; a report of the whole
adds them up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, primitive
from parallel_dl.autograd.ops.classification import answers, class_numbers, one_hot
from parallel_dl.errors import InputError
from parallel_dl.mesh import Message, slices

Loss = Callable[[Any, Any, float | None], Tensor]
Combine = Callable[..., np.ndarray]

TAKE_SLICES = (nn.cross_entropy, nn.logistic_loss, nn.mse)


@primitive
def split_cross_entropy(logits, *, targets, combine, first, classes, total=1):
    """`ops.cross_entropy` of scores whose classes are divided: this rank has (n, own) of them, from class `first` on.

    targets (n,) are integers in 0..classes-1, the same on all ranks. The result is the whole loss, on every rank; its
    gradient needs no exchange. `combine(array, op)` is called twice: with the n maxima, and with the n sums of
    exponentials and the n scores of the target class.
    """
    labels = class_numbers(targets, classes, "cross_entropy").reshape(-1)
    count, own = logits.shape
    rows = np.flatnonzero((first <= labels) & (labels < first + own))  # samples whose class this rank has
    columns = labels[rows] - first
    largest = combine(logits.max(axis=1, initial=-np.inf).astype(logits.dtype, copy=False), "max")
    shifted = logits - largest[:, np.newaxis]
    exponentials = np.exp(shifted)
    sums = np.zeros((2, count), logits.dtype)  # of exponentials; score of the target class
    exponentials.sum(axis=1, out=sums[0])
    sums[1, rows] = shifted[rows, columns]
    sums = combine(sums, "sum")
    value = (np.log(sums[0]).sum() - sums[1].sum()) / total

    # g is a scalar: d/d logits = (softmax - one_hot) g / total
    def gradient(g):
        scale = np.asarray(g / total, logits.dtype)
        own_part = exponentials * (scale / sums[0])[:, np.newaxis]
        own_part[rows, columns] -= scale
        return own_part

    return np.asarray(value, logits.dtype), (gradient,)


def of_classes(loss: Loss, sizes: tuple[int, ...], rank: int, combine: Combine) -> Loss:
    """`loss`, one of TAKE_SLICES, for scores (n, own) of which each rank has `sizes[rank]` classes; whole targets.

    Another may have a method `of_slices(own, classes, combine)` that gives it: a loss of slices whose value is whole on
    every rank. `combine(array, "sum" or "max")` is that over the ranks.
    """
    own, classes = slices(sizes)[rank], sum(sizes)
    if hasattr(loss, "of_slices"):
        return loss.of_slices(own, classes, combine)

    def require(name: str, scores: Any, targets: np.ndarray, *shapes: tuple[int, ...]) -> None:
        """Refuses, on every rank, what the loss of whole scores refuses."""
        if targets.shape not in shapes:
            raise InputError(f"{name}: scores {(len(scores), classes)} do not fit targets {targets.shape}")

    def cross_entropy(logits: Any, targets: Any, total: float | None = None) -> Tensor:
        targets = _array(targets)
        require("cross_entropy", logits, targets, (len(logits),))
        given = max(targets.size, 1) if total is None else total
        return split_cross_entropy(
            logits, targets=targets, combine=combine, first=own.start, classes=classes, total=given
        )

    def logistic_loss(logits: Any, targets: Any, total: float | None = None) -> Tensor:
        targets = _array(targets)
        require("logistic_loss", logits, targets, (len(logits),), (len(logits), classes))
        if targets.ndim == 1:
            targets = one_hot(targets, classes, logits.dtype, "logistic_loss")
        targets = answers(targets, targets.shape, "logistic_loss")  # all of them: every rank refuses them, or none
        return nn.logistic_loss(logits, targets[:, own], total)

    def mse(predictions: Any, targets: Any, total: float | None = None) -> Tensor:
        targets = _array(targets)
        require("mse", predictions, targets, (len(predictions), classes))
        return nn.mse(predictions, targets[:, own], max(targets.size, 1) if total is None else total)

    of_slices: dict[Loss, Loss] = {nn.cross_entropy: cross_entropy, nn.logistic_loss: logistic_loss, nn.mse: mse}
    return of_slices[loss]


def of_samples(loss: Loss, own: Callable[[], slice]) -> Loss:
    """`loss` for the outputs of this rank's share `own()` of the batch at hand: its summand; targets are of all."""

    def of_share(outputs: Any, targets: Any, total: float | None = None) -> Tensor:
        if total is None:
            raise InputError("a loss of samples that are divided among ranks needs total, the number of all samples")
        return loss(outputs, targets[own()], total)

    return of_share


def messages_of_classes() -> tuple[Message, ...]:
    """What every rank sends for one sample in the cross-entropy of split classes: two all-reduces."""
    return Message("forward", "all_reduce", 1, 1), Message("forward", "all_reduce", 1, 2)


def takes_slices(loss: Loss) -> bool:
    """Whether `of_classes` knows it: one of TAKE_SLICES, or one with a method for it."""
    return loss in TAKE_SLICES or hasattr(loss, "of_slices")


def is_summand(loss: Loss) -> bool:
    """Whether a loss of split classes gives each rank its summand, and not the whole value."""
    return loss is not nn.cross_entropy and not hasattr(loss, "of_slices")


def _array(value: Any) -> np.ndarray:
    return value.data if isinstance(value, Tensor) else np.asarray(value)

"""Losses of class scores that are split by class: none of them gathers the scores.

    cross_entropy   the maximum and the sum of exponentials of each sample are combined: 3 values per sample
    logistic_loss   each class is a question of its own (Krizhevsky 2014, arXiv 1404.5997): nothing is exchanged
    mse             as the logistic loss

The last two give each rank its summand of the loss; a report of the whole adds them up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from parallel_dl import nn, reproducible
from parallel_dl.autograd import Tensor, primitive
from parallel_dl.autograd.ops.classification import answers, class_numbers, one_hot
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator
from parallel_dl.splits.placement import slices

Loss = Callable[[Any, Any, float | None], Tensor]

IN_LEAVES = (reproducible.losses.cross_entropy, reproducible.losses.logistic_loss)
TAKE_SLICES = (nn.cross_entropy, nn.logistic_loss, nn.mse)


@primitive
def split_cross_entropy(logits, *, targets, comm, first, classes, total=1):
    """`ops.cross_entropy` of scores whose classes are divided: this rank has (n, own) of them, from class `first` on.

    targets (n,) are integers in 0..classes-1, the same on all ranks. The result is the whole loss, on every rank; its
    gradient needs no exchange. Two all-reduces: of the n maxima, and of the n sums of exponentials with the n scores of
    the target class.
    """
    labels = class_numbers(targets, classes, "cross_entropy").reshape(-1)
    count, own = logits.shape
    rows = np.flatnonzero((first <= labels) & (labels < first + own))  # samples whose class this rank has
    columns = labels[rows] - first
    largest = comm.all_reduce(logits.max(axis=1, initial=-np.inf).astype(logits.dtype, copy=False), "max")
    shifted = logits - largest[:, np.newaxis]
    exponentials = np.exp(shifted)
    sums = np.zeros((2, count), logits.dtype)  # of exponentials; score of the target class
    exponentials.sum(axis=1, out=sums[0])
    sums[1, rows] = shifted[rows, columns]
    sums = comm.all_reduce(sums)
    value = (np.log(sums[0]).sum() - sums[1].sum()) / total

    # g is a scalar: d/d logits = (softmax - one_hot) g / total
    def gradient(g):
        scale = np.asarray(g / total, logits.dtype)
        own_part = exponentials * (scale / sums[0])[:, np.newaxis]
        own_part[rows, columns] -= scale
        return own_part

    return np.asarray(value, logits.dtype), (gradient,)


def split_loss(loss: Loss, sizes: tuple[int, ...], comm: Communicator) -> Loss:
    """`loss`, one of TAKE_SLICES, for scores (n, own) of which each rank has `sizes[rank]` classes; whole targets."""
    own, classes = slices(sizes)[comm.rank], sum(sizes)
    if loss in IN_LEAVES:
        return partial(loss, part=own, classes=classes, combine=comm.all_reduce)

    def require(name: str, scores: Any, targets: np.ndarray, *shapes: tuple[int, ...]) -> None:
        """Refuses, on every rank, what the loss of whole scores refuses."""
        if targets.shape not in shapes:
            raise InputError(f"{name}: scores {(len(scores), classes)} do not fit targets {targets.shape}")

    def cross_entropy(logits: Any, targets: Any, total: float | None = None) -> Tensor:
        targets = _array(targets)
        require("cross_entropy", logits, targets, (len(logits),))
        given = max(targets.size, 1) if total is None else total
        return split_cross_entropy(logits, targets=targets, comm=comm, first=own.start, classes=classes, total=given)

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


def takes_slices(loss: Loss) -> bool:
    """Whether `split_loss` knows it: one of TAKE_SLICES, or of those over leaves."""
    return loss in TAKE_SLICES or loss in IN_LEAVES


def is_summand(loss: Loss) -> bool:
    """Whether a split loss gives each rank its summand, and not the whole value."""
    return loss is not nn.cross_entropy and loss not in IN_LEAVES


def _array(value: Any) -> np.ndarray:
    return value.data if isinstance(value, Tensor) else np.asarray(value)

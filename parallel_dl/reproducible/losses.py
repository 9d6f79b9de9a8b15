"""Losses whose sums are made over leaves: classes in leaves for each sample, then the samples of a sub-batch.

Where the classes are divided among ranks, each calls the same function with its slice of the scores, the `part` of the
classes that it has, and `combine`, which finishes a sum over the ranks: every rank then has the whole loss. In a serial
run there is nothing to finish. The gradients of scores need no exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, primitive
from parallel_dl.autograd.ops.classification import answers, class_numbers, one_hot
from parallel_dl.errors import InputError
from parallel_dl.reproducible.leaves import Leaves, Own, sum_of_rows

Combine = Callable[[np.ndarray, str], np.ndarray]
"""(array, "sum" or "max") -> that over the ranks that share a network"""


def _alone(array: np.ndarray, operation: str) -> np.ndarray:
    return array


def cross_entropy(
    logits: Any,
    targets: Any,
    total: float | None = None,
    part: slice | None = None,
    classes: int | None = None,
    combine: Combine = _alone,
) -> Tensor:
    """`nn.cross_entropy` over leaves; logits (n, classes), or (n, those in `part` of `classes`)."""
    targets = _array(targets)
    if len(logits.shape) != 2 or tuple(logits.shape[:1]) != targets.shape:
        raise InputError(f"cross_entropy: logits {tuple(logits.shape)} do not fit targets {targets.shape}")
    count = logits.shape[1] if classes is None else classes
    targets = class_numbers(targets, count, "cross_entropy")
    own, first = Leaves.even(count).within(part), 0 if part is None else part.start
    given = max(targets.size, 1) if total is None else total
    return _cross_entropy(logits, targets=targets, first=first, classes=count, own=own, combine=combine, total=given)


def logistic_loss(
    logits: Any,
    targets: Any,
    total: float | None = None,
    part: slice | None = None,
    classes: int | None = None,
    combine: Combine = _alone,
) -> Tensor:
    """`nn.logistic_loss` over leaves; logits (n, classes), or (n, those in `part` of `classes`), but whole targets."""
    targets = _array(targets)
    count = logits.shape[1] if classes is None else classes
    if targets.ndim == 1:
        targets = one_hot(targets, count, logits.dtype, "logistic_loss")
    targets = answers(targets, (logits.shape[0], count), "logistic_loss")  # whole: every rank refuses them, or none
    if part is not None:
        targets = targets[:, part]
    given = max(len(targets), 1) if total is None else total
    own = Leaves.even(count).within(part)
    return _logistic_loss(logits, targets=targets, own=own, combine=combine, total=given)


def in_leaves(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss that adds up over leaves: of ours, those that take slices of the scores; another takes them whole."""
    ours = (cross_entropy, logistic_loss)
    known = {nn.cross_entropy: cross_entropy, nn.logistic_loss: logistic_loss} | dict(zip(ours, ours))
    if loss in known:
        return known[loss]

    def of_whole_scores(scores: Any, targets: Any, total: float | None = None) -> Any:
        return loss(scores, targets, total)

    return of_whole_scores  # none that scores are left split for, whatever the other is


def _array(value: Any) -> np.ndarray:
    return value.data if isinstance(value, Tensor) else np.asarray(value)


def _over_classes(values: np.ndarray, own: Own, combine: Combine) -> np.ndarray:
    """(n, own classes) added up over all classes: (n,)."""
    in_blocks = np.moveaxis(own.cut(values, 1), 2, 0)  # (block, leaves, n)
    return combine(own.add_up(sum_of_rows(in_blocks)), "sum")


@primitive
def _cross_entropy(logits, *, targets, first, classes, own, combine, total):
    """`ops.cross_entropy` of the logits (n, own) from class `first` on, for targets (n,) in 0..classes-1; a scalar."""
    logits = np.array(logits, order="C")
    rows = np.flatnonzero((first <= targets) & (targets < first + logits.shape[1]))  # samples whose class is here
    columns = targets[rows] - first
    largest = combine(logits.max(axis=1, initial=-np.inf).astype(logits.dtype, copy=False), "max")
    shifted = logits - largest[:, np.newaxis]
    exponentials = np.exp(shifted)
    sums = _over_classes(exponentials, own, combine)
    chosen = np.zeros(len(targets), logits.dtype)
    chosen[rows] = shifted[rows, columns]
    value = sum_of_rows(np.log(sums) - combine(chosen, "sum")) / total

    # g is a scalar: d/d logits = (softmax - one_hot) g / total
    def gradient(g):
        scale = np.asarray(g / total, logits.dtype)
        part = exponentials * (scale / sums)[:, np.newaxis]
        part[rows, columns] -= scale
        return part

    return np.asarray(value, logits.dtype), (gradient,)


@primitive
def _logistic_loss(logits, *, targets, own, combine, total):
    """`ops.logistic_loss` of the logits (n, own) and as many targets; a scalar."""
    logits = np.array(logits, order="C")
    targets = targets.astype(logits.dtype)
    small = np.exp(-np.abs(logits))  # in 0..1: cannot overflow
    each = np.maximum(logits, 0) - targets * logits + np.log1p(small)
    value = sum_of_rows(_over_classes(each, own, combine)) / total

    # g is a scalar: d/d logits = (sigmoid(logits) - targets) g / total
    def gradient(g):
        tail = small / (1 + small)  # sigmoid(-|z|)
        difference = np.where(logits > 0, (1 - targets) - tail, tail - targets)
        return difference * np.asarray(g / total, logits.dtype)

    return np.asarray(value, logits.dtype), (gradient,)

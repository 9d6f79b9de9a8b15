"""Losses over leaves: each sample's classes in leaves, then the samples of each leaf, then the leaves.

Where the classes are divided among ranks, each calls the same function with its slice of the scores, the `part` of the
classes that it has, and `combine`, which finishes a sum over the ranks: every rank then has the whole loss. In a serial
run there is nothing to finish. The gradients of scores need no exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops, primitive
from parallel_dl.autograd.ops.classification import answers, class_numbers, one_hot
from parallel_dl.errors import InputError
from parallel_dl.reproducible.leaves import Leaves, Own, runs, sum_of_leaves, sum_of_rows

Combine = Callable[[np.ndarray, str], np.ndarray]
"""(array, "sum" or "max") -> that over the ranks that share a network"""
Report = Callable[[np.ndarray], None]
"""is told the losses (leaves,) of each leaf of samples"""


def _alone(array: np.ndarray, operation: str) -> np.ndarray:
    return array


class LeafLoss:
    """`loss`, of which each leaf of samples makes its own sum; `leaves()` says how many, `report` is told the sums.

    One of the user's own is called for each leaf by itself, with whole scores.
    """

    def __init__(self, loss: Callable[..., Any], leaves: Callable[[], int], report: Report) -> None:
        self.loss, self.leaves, self.report = loss, leaves, report
        self._known = {nn.cross_entropy: cross_entropy, nn.logistic_loss: logistic_loss}.get(loss)
        if self._known is not None:
            self.of_slices = self._of_slices

    def __call__(self, scores: Any, targets: Any, total: float | None = None, **slices: Any) -> Tensor:
        """The sum of this rank's leaves."""
        if self._known is None:
            return self._one_by_one(scores, targets, total)
        return self._known(scores, targets, total, leaves=self.leaves(), report=self.report, **slices)

    def _of_slices(self, part: slice, classes: int, combine: Combine) -> Callable[..., Tensor]:
        """The whole loss, on every rank, from scores (n, those in `part` of `classes`)."""
        return partial(self, part=part, classes=classes, combine=combine)

    def _one_by_one(self, scores: Any, targets: Any, total: float | None) -> Tensor:
        targets, found = _array(targets), np.zeros(self.leaves())
        whole = None
        for run in runs(len(targets), len(found), 1):
            value = self.loss(ops.index(scores, index=run.rows), targets[run.rows], total)
            found[run.leaves] = value.item()
            whole = value if whole is None else ops.add(whole, value)  # for the gradient, which of each is 1
        self.report(found)
        return self.loss(scores, targets, total) if whole is None else whole


def cross_entropy(
    logits: Any,
    targets: Any,
    total: float | None = None,
    part: slice | None = None,
    classes: int | None = None,
    combine: Combine = _alone,
    leaves: int = 1,
    report: Report | None = None,
) -> Tensor:
    """`nn.cross_entropy` over leaves; logits (n, classes), or (n, those in `part` of `classes`)."""
    targets = _array(targets)
    if len(logits.shape) != 2 or tuple(logits.shape[:1]) != targets.shape:
        raise InputError(f"cross_entropy: logits {tuple(logits.shape)} do not fit targets {targets.shape}")
    count = logits.shape[1] if classes is None else classes
    targets = class_numbers(targets, count, "cross_entropy")
    own, first = Leaves.even(count).within(part), 0 if part is None else part.start
    summing = {"own": own, "combine": combine, "leaves": leaves, "report": report}
    return _cross_entropy(
        logits, targets=targets, first=first, total=max(targets.size, 1) if total is None else total, **summing
    )


def logistic_loss(
    logits: Any,
    targets: Any,
    total: float | None = None,
    part: slice | None = None,
    classes: int | None = None,
    combine: Combine = _alone,
    leaves: int = 1,
    report: Report | None = None,
) -> Tensor:
    """`nn.logistic_loss` over leaves; logits (n, classes), or (n, those in `part` of `classes`), but whole targets."""
    targets = _array(targets)
    count = logits.shape[1] if classes is None else classes
    if targets.ndim == 1:
        targets = one_hot(targets, count, logits.dtype, "logistic_loss")
    targets = answers(targets, (logits.shape[0], count), "logistic_loss")  # whole: every rank refuses them, or none
    if part is not None:
        targets = targets[:, part]
    own = Leaves.even(count).within(part)
    summing = {"own": own, "combine": combine, "leaves": leaves, "report": report}
    return _logistic_loss(logits, targets=targets, total=max(len(targets), 1) if total is None else total, **summing)


def _array(value: Any) -> np.ndarray:
    return value.data if isinstance(value, Tensor) else np.asarray(value)


def _over_classes(values: np.ndarray, own: Own, combine: Combine) -> np.ndarray:
    """(n, own classes) added up over all classes: (n,)."""
    in_blocks = np.moveaxis(own.cut(values, 1), 2, 0)  # (block, leaves, n)
    return combine(own.add_up(sum_of_rows(in_blocks)), "sum")


def _over_samples(values: np.ndarray, total: float, leaves: int, report: Report | None) -> np.ndarray:
    """(n,) added up in each leaf, divided by `total`, and then over the leaves: a scalar."""
    sums = np.zeros(leaves, values.dtype)
    for run in runs(len(values), leaves):
        sums[run.leaves] = sum_of_rows(run.of(values).swapaxes(0, 1)) / total
    if report is not None:
        report(sums)
    return np.asarray(sum_of_leaves(sums), values.dtype)


@primitive
def _cross_entropy(logits, *, targets, first, total, own, combine, leaves, report):
    """`ops.cross_entropy` of the logits (n, own) from class `first` on, for targets (n,); a scalar."""
    logits = np.array(logits, order="C")
    rows = np.flatnonzero((first <= targets) & (targets < first + logits.shape[1]))  # samples whose class is here
    columns = targets[rows] - first
    largest = combine(logits.max(axis=1, initial=-np.inf).astype(logits.dtype, copy=False), "max")
    shifted = logits - largest[:, np.newaxis]
    exponentials = np.exp(shifted)
    sums = _over_classes(exponentials, own, combine)
    chosen = np.zeros(len(targets), logits.dtype)
    chosen[rows] = shifted[rows, columns]
    value = _over_samples(np.log(sums) - combine(chosen, "sum"), total, leaves, report)

    # g is a scalar: d/d logits = (softmax - one_hot) g / total
    def gradient(g):
        scale = np.asarray(g / total, logits.dtype)
        part = exponentials * (scale / sums)[:, np.newaxis]
        part[rows, columns] -= scale
        return part

    return value, (gradient,)


@primitive
def _logistic_loss(logits, *, targets, total, own, combine, leaves, report):
    """`ops.logistic_loss` of the logits (n, own) and as many targets; a scalar."""
    logits = np.array(logits, order="C")
    targets = targets.astype(logits.dtype)
    small = np.exp(-np.abs(logits))  # in 0..1: cannot overflow
    each = np.maximum(logits, 0) - targets * logits + np.log1p(small)
    value = _over_samples(_over_classes(each, own, combine), total, leaves, report)

    # g is a scalar: d/d logits = (sigmoid(logits) - targets) g / total
    def gradient(g):
        tail = small / (1 + small)  # sigmoid(-|z|)
        difference = np.where(logits > 0, (1 - targets) - tail, tail - targets)
        return difference * np.asarray(g / total, logits.dtype)

    return value, (gradient,)

"""How good a network is on samples it was not trained with: the loss and, if there are classes, the accuracy.

A number that cannot be computed is None, with a line that says why; the results of training are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor
from parallel_dl.errors import bounded


@dataclass(frozen=True)
class Evaluation:
    """The same on every rank."""

    loss: float | None
    """the mean over the samples; None if it cannot be computed"""
    accuracy: float | None
    """share of samples classified correctly; None if the targets are not classes"""
    note: str | None = None
    """why the loss is None"""


@dataclass
class Tally:
    """Sums over samples. `loss` is (whole output, targets, total) -> a scalar; `total` the number of all samples."""

    loss: Callable[..., Any]
    total: int
    sum_of_losses: float = 0.0
    right: int = 0
    judged: int = 0
    """samples whose class is known and predicted, rightly or not"""
    note: str | None = field(default=None)

    def add(self, scores: np.ndarray, targets: np.ndarray) -> None:
        """Samples (k, ...) by their whole outputs."""
        if targets.dtype.kind in "iu" and scores.shape[:-1] == targets.shape and scores.ndim > 1:
            self.right += int((scores.argmax(axis=-1) == targets).sum())
            self.judged += len(targets)
        if self.note is not None:
            return
        try:
            value = self.loss(Tensor(scores), targets, self.total)
            self.sum_of_losses += float(value.item() if isinstance(value, Tensor) else value)
        except Exception as error:  # any: the loss may be a user's own function
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Notes why there will be no loss."""
        self.note = self.note or bounded(f"test loss: {type(error).__name__}: {error}")

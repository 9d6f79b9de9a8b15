"""The flag --loss, and whether a loss fits the targets: classes, or values of a regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from parallel_dl.errors import InputError, unknown_name

if TYPE_CHECKING:
    from parallel_dl.datasets import Dataset

LOSSES = ("cross-entropy", "logistic", "mse")


def require_known(loss: str) -> None:
    """Raises InputError, with the nearest name, for a loss that we do not have."""
    if loss not in LOSSES:
        raise unknown_name("`loss`", loss, LOSSES)


def function_of(loss: str) -> Callable[..., Any]:
    """The loss of that name."""
    from parallel_dl import nn

    return {"cross-entropy": nn.cross_entropy, "logistic": nn.logistic_loss, "mse": nn.mse}[loss]


def fitted(loss: str, data: Dataset) -> Dataset:
    """The data with the targets that the loss takes: for cross-entropy, floats that are class numbers are classes.

    Raises InputError for a loss that cannot be computed with them.
    """
    if loss == "cross-entropy":
        data = data.with_classes()
    what = f"--loss {loss}: the targets of {data.name} are"
    if data.classes is not None:
        if loss == "mse":
            raise InputError(
                f"{what} class numbers; valid are --loss cross-entropy and logistic, or targets that are floats"
            )
        return data
    floats = f"floats of shape {data.y_train.shape[1:]}, not class numbers"
    if loss == "cross-entropy":
        valid = "valid is --loss mse for values to predict, or class numbers"
        if data.y_train.ndim > 1 and _are_answers(data):
            valid += " (of one-hot targets: y.argmax(-1)), or --loss logistic for several answers in 0..1"
        raise InputError(f"{what} {floats}; {valid}")
    if loss == "logistic" and not _are_answers(data):
        raise InputError(f"{what} {floats}, and not all in 0..1; valid is --loss mse")
    return data


def _are_answers(data: Dataset) -> bool:
    """Whether every target is in 0..1: one-hot, or a yes or no for each class."""
    return all(y.min() >= 0 and y.max() <= 1 for y in (data.y_train, data.y_test))

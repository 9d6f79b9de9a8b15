"""The flag --loss, and whether a loss fits the targets: classes, or values of a regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from parallel_dl import from_file
from parallel_dl.errors import InputError

if TYPE_CHECKING:
    from parallel_dl.datasets import Dataset

LOSSES = ("cross-entropy", "logistic", "mse")


def function_of(loss: str) -> Callable[..., Any]:
    """The loss of that name, or of a user's own file; InputError for an unknown one, with the nearest name."""
    from parallel_dl import nn

    shipped = (nn.cross_entropy, nn.logistic_loss, nn.mse)
    return from_file.find("`loss`", loss, dict(zip(LOSSES, shipped)))


def require_classes(loss: str | None) -> None:
    """Refuses (InputError) a loss that takes no class numbers, which random samples have."""
    if loss is not None:
        function_of(loss)
    if loss == "mse":
        raise InputError(
            "takes no class numbers, but the targets of random samples are; use a `dataset` with float targets",
            "loss",
            loss,
        )


def fitted(loss: str, data: Dataset) -> Dataset:
    """The data with the targets that the loss takes: for cross-entropy, floats that are class numbers are classes.

    Raises InputError for a loss that cannot be computed with them.
    """
    if loss == "cross-entropy":
        data = data.with_classes()
    if from_file.is_own(loss):
        return data
    what = f"`loss` {loss}: the targets of {data.name} are"
    if data.classes is not None:
        if loss == "mse":
            raise InputError(f"{what} class numbers; use `loss` cross-entropy or logistic, or float targets")
        return data
    floats = f"floats of shape {data.y_train.shape[1:]}, not class numbers"
    if loss == "cross-entropy":
        valid = "use `loss` mse to predict values, or give class numbers"
        if data.y_train.ndim > 1 and _are_answers(data):
            valid += " (of one-hot targets: y.argmax(-1)), or `loss` logistic for several answers in 0..1"
        raise InputError(f"{what} {floats}; {valid}")
    if loss == "logistic" and not _are_answers(data):
        raise InputError(f"{what} {floats}, and not all in 0..1; use `loss` mse")
    return data


def _are_answers(data: Dataset) -> bool:
    """Whether every target is in 0..1: one-hot, or a yes or no for each class."""
    return all(y.min() >= 0 and y.max() <= 1 for y in (data.y_train, data.y_test))

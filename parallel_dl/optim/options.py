"""The options of an update rule: checked where they are given, and attributes of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from parallel_dl.errors import InputError

if TYPE_CHECKING:
    from parallel_dl.optim.optimizer import Optimizer

Options = Mapping[str, Any]


def require(name: str, value: float, valid: bool, expected: str) -> float:
    """The value, if it is valid; otherwise InputError with its name and what is expected."""
    if not valid:
        raise InputError(f"must be {expected}", name, str(value))
    return value


def is_number(value: Any) -> bool:
    """Whether it is a real number, Python's or NumPy's, and no boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def require_momentum(options: Options) -> None:
    """InputError for a momentum outside 0..1."""
    require("momentum", options["momentum"], 0 <= options["momentum"] < 1, "at least 0 and below 1")


def require_weight_decay(options: Options) -> None:
    """InputError for a weight decay that is negative or not finite."""
    require(
        "weight_decay", options["weight_decay"], 0 <= options["weight_decay"] < math.inf, "a finite number, at least 0"
    )


class Option:
    """An option of an update rule as an attribute: reads the value common to all groups, and sets it for all.

    ValueError if groups have different values; read these from `param_groups`.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Optimizer | None, owner: type) -> Any:
        if optimizer is None:
            return self
        first, *others = (group[self.name] for group in optimizer.param_groups)
        if any(other != first for other in others):
            raise ValueError(f"each group has its own {self.name}: use param_groups[i][{self.name!r}]")
        return first

    def __set__(self, optimizer: Optimizer, value: Any) -> None:
        self.__get__(optimizer, type(optimizer))
        for group in optimizer.param_groups:
            group[self.name] = value

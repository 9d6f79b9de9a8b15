"""Weight stashing: keeps the weights used in a microbatch's forward pass until its backward pass.

(Narayanan et al. 2019, PipeDream, SOSP '19, section 3.3.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from parallel_dl.nn import FlatParameters, Parameter, flatten


class WeightStash:
    """The versions of these weights: how many updates between microbatches each has seen."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        self.version = 0
        self._kept: dict[int, list[np.ndarray]] = {}

    def advance(self, in_use: Collection[int]) -> None:
        """Before an update: keeps the current and earlier versions that are still in use."""
        if self.version in in_use:
            self._kept[self.version] = [group.values.copy() for group in self._groups]
        self._kept = {version: values for version, values in self._kept.items() if version in in_use}
        self.version += 1

    @contextmanager
    def using(self, version: int) -> Iterator[None]:
        """Sets the weights to that version inside; the tape keeps their memory alive."""
        if version == self.version:
            yield
            return
        now = [group.values.copy() for group in self._groups]
        self._set(self._kept[version])
        try:
            yield
        finally:
            self._set(now)

    def _set(self, values: Sequence[np.ndarray]) -> None:
        for group, own in zip(self._groups, values):
            group.values[...] = own

    @property
    def _groups(self) -> list[FlatParameters]:
        return flatten(self.parameters)

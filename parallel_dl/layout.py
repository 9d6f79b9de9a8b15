"""How one run uses the ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from parallel_dl.errors import InputError


@dataclasses.dataclass(frozen=True)
class Layout:
    """`dp` replicas, each on `mp` ranks, and each with a share of every microbatch; a batch is cut into `microbatches`.

    `split` says how the layers of a replica are divided among its `mp` ranks: ways by name of layer or group, see
    `splits.plan`; None takes the default. Several microbatches are gradient accumulation: one update after all of them.
    Raises InputError for numbers below 1.
    """

    dp: int = 1
    mp: int = 1
    microbatches: int = 1
    split: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for flag in ("dp", "mp", "microbatches"):
            if getattr(self, flag) < 1:
                raise InputError(f"--{flag} {getattr(self, flag)}: must be at least 1")

    @property
    def ranks(self) -> int:
        """How many ranks it takes."""
        return self.dp * self.mp

    @property
    def splits_layers(self) -> bool:
        """Whether the network has to be divided; on one rank only if somebody asks for it."""
        return self.mp > 1 or bool(self.split)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. No schedule is in use without a pipeline: null."""
        return {
            "dp": self.dp,
            "mp": self.mp,
            "pp": 1,
            "schedule": None,
            "microbatches": self.microbatches,
            "split": dict(self.split or {}),
        }

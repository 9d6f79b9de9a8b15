"""How one run uses the ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

from parallel_dl.errors import InputError


@dataclasses.dataclass(frozen=True)
class Layout:
    """`dp` replicas, each with a share of every microbatch; each batch is cut into `microbatches`.

    Several microbatches are gradient accumulation: one update after all of them. Raises InputError for numbers below 1.
    """

    dp: int = 1
    microbatches: int = 1

    def __post_init__(self) -> None:
        for flag in ("dp", "microbatches"):
            if getattr(self, flag) < 1:
                raise InputError(f"--{flag} {getattr(self, flag)}: must be at least 1")

    @property
    def ranks(self) -> int:
        """How many ranks it takes."""
        return self.dp

    def as_dict(self) -> dict[str, Any]:
        """For JSON. No schedule is in use without a pipeline: null."""
        return {
            "dp": self.dp,
            "mp": 1,
            "pp": 1,
            "schedule": None,
            "microbatches": self.microbatches,
            "split": {},
        }

"""How one run uses the ranks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from parallel_dl.errors import InputError
from parallel_dl.schedule import ASYNCHRONOUS


@dataclasses.dataclass(frozen=True)
class Layout:
    """`dp` replicas, each on `pp` x `mp` ranks, and each with a share of every one of the batch's `microbatches`.

    `split` says how the layers of a replica are divided among its `mp` ranks: ways by name of layer or group, see
    `splits.plan`; None takes the default. On `pp` ranks, or with a `schedule`, it is a pipeline: stages begin at the
    layers `stages` (None: where the work is even), and `schedule` (None: 1f1b) is their order of work; `chunks` is for
    the schedule "interleaved". Without a pipeline several microbatches are gradient accumulation: one update after all
    of them. Raises InputError for numbers below 1.
    """

    dp: int = 1
    mp: int = 1
    microbatches: int = 1
    split: Mapping[str, str] | None = None
    pp: int = 1
    schedule: str | None = None
    stages: Sequence[str] | None = None
    chunks: int | None = None

    def __post_init__(self) -> None:
        for flag in ("dp", "mp", "pp", "microbatches"):
            if getattr(self, flag) < 1:
                raise InputError(f"--{flag} {getattr(self, flag)}: must be at least 1")

    @property
    def ranks(self) -> int:
        """How many ranks it takes."""
        return self.dp * self.mp * self.pp

    @property
    def is_pipelined(self) -> bool:
        """Whether the layers are in stages, run by a schedule; on one rank only if somebody asks for it."""
        return self.pp > 1 or self.schedule is not None

    @property
    def schedule_name(self) -> str:
        """The schedule of a pipeline."""
        return "1f1b" if self.schedule is None else self.schedule

    def updates(self, samples: int, batch_size: int, epochs: int = 1, steps: int | None = None) -> int:
        """How many updates training makes: `steps`, or those of so many epochs of `samples`.

        An asynchronous schedule makes one per microbatch. InputError for steps that end inside a batch then, and for a
        batch that has fewer samples than microbatches.
        """
        per_batch = self.microbatches if self.is_pipelined and self.schedule_name in ASYNCHRONOUS else 1
        batches = math.ceil(samples / batch_size)
        in_all = epochs * batches * per_batch if steps is None else steps
        if per_batch == 1:
            return in_all
        if in_all % per_batch:
            raise InputError(
                f"--steps {in_all}: {self.schedule_name} makes {per_batch} updates per batch, one per microbatch; "
                f"valid are multiples of {per_batch}"
            )
        last = samples - (batches - 1) * batch_size
        smallest = last if in_all >= batches * per_batch else batch_size
        if smallest < per_batch:
            raise InputError(
                f"--microbatches {per_batch}: {self.schedule_name} makes an update with each, but a batch has "
                f"{smallest} samples; valid are 1 to {smallest}"
            )
        return in_all

    @property
    def splits_layers(self) -> bool:
        """Whether the network has to be divided; on one rank only if somebody asks for it."""
        return self.mp > 1 or bool(self.split)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. No schedule is in use without a pipeline: null."""
        return {
            "dp": self.dp,
            "mp": self.mp,
            "pp": self.pp,
            "schedule": self.schedule_name if self.is_pipelined else None,
            "microbatches": self.microbatches,
            "split": dict(self.split or {}),
        }

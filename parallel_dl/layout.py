"""How one run uses the ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from parallel_dl.errors import InputError
from parallel_dl.partition import LEAVES


@dataclasses.dataclass(frozen=True)
class Layout:
    """`dp` replicas, each on `pp` x `mp` ranks, and each with a share of every one of the batch's `microbatches`.

    `split` says how the layers of a replica are divided among its `mp` ranks: ways by name of layer or group, see
    `splits.plan`; None takes the default. On `pp` ranks, or with a `schedule`, it is a pipeline: stages begin at the
    layers `stages` (None: where the work is even), and `schedule` (None: 1f1b) is their order of work; `chunks` is for
    the schedule "interleaved". Without a pipeline several microbatches are gradient accumulation: one update after all
    of them. With `reproducible` the results are the same bits in every layout (`parallel_dl.reproducible`): `dp` and
    `mp` then divide `partition.LEAVES`, and a pipeline is not "pipedream". Raises InputError for what is not so, and
    for numbers below 1.
    """

    dp: int = 1
    mp: int = 1
    microbatches: int = 1
    split: Mapping[str, str] | None = None
    pp: int = 1
    schedule: str | None = None
    stages: Sequence[str] | None = None
    chunks: int | None = None
    reproducible: bool = False

    def __post_init__(self) -> None:
        for flag in ("dp", "mp", "pp", "microbatches"):
            if getattr(self, flag) < 1:
                raise InputError(f"--{flag} {getattr(self, flag)}: must be at least 1")
        if self.reproducible:
            for flag in ("dp", "mp"):
                if LEAVES % getattr(self, flag):
                    valid = ", ".join(str(n) for n in range(1, LEAVES + 1) if LEAVES % n == 0)
                    raise InputError(f"--{flag} {getattr(self, flag)}: with --reproducible valid are {valid}")
            if self.schedule == "pipedream":
                raise InputError("--schedule pipedream: --reproducible needs one update per batch; valid is 1f1b")

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
        return self.schedule or "1f1b"

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
            "reproducible": self.reproducible,
        }

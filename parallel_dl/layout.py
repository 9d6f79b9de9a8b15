"""How one run uses the ranks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from parallel_dl.errors import InputError, unknown_name
from parallel_dl.schedule import ASYNCHRONOUS

HYBRIDS = ("owt",)
SCHEMES = ("a", "b", "c")


@dataclasses.dataclass(frozen=True)
class Layout:
    """`dp` replicas, each on `pp` x `mp` ranks, and each with a share of every one of the batch's `microbatches`.

    `split` says how the layers of a replica are divided among its `mp` ranks: ways by name of layer or group, see
    `splits.plan`; None takes the default. On `pp` ranks, or with a `schedule`, it is a pipeline: stages begin at the
    layers `stages` (None: where the work is even), and `schedule` (None: 1f1b) is their order of work; `chunks` is for
    the schedule "interleaved". Without a pipeline several microbatches are gradient accumulation: one update after all
    of them.

    With the `hybrid` "owt" all ranks of `dp` are also those that share the layers behind the first Flatten, which
    `split` is then of: see `hybrid.one_weird_trick`, with its `scheme` and `variable_batch`. Raises InputError for
    numbers below 1, and for a hybrid with anything that it does not go with.
    """

    dp: int = 1
    mp: int = 1
    microbatches: int = 1
    split: Mapping[str, str] | None = None
    pp: int = 1
    schedule: str | None = None
    stages: Sequence[str] | None = None
    chunks: int | None = None
    hybrid: str | None = None
    scheme: str = "a"
    variable_batch: bool = False

    def __post_init__(self) -> None:
        for flag in ("dp", "mp", "pp", "microbatches"):
            if getattr(self, flag) < 1:
                raise InputError(f"--{flag} {getattr(self, flag)}: must be at least 1")
        if self.hybrid is not None:
            self._require_hybrid(self.hybrid)
        elif self.scheme != "a" or self.variable_batch:
            flag = "variable-batch" if self.variable_batch else f"scheme {self.scheme}"
            raise InputError(f"--{flag}: belongs to --hybrid; valid is --hybrid {HYBRIDS[0]}")

    def _require_hybrid(self, name: str) -> None:
        if name not in HYBRIDS:
            raise unknown_name("--hybrid", name, HYBRIDS)
        if self.scheme not in SCHEMES:
            raise unknown_name("--scheme", self.scheme, SCHEMES)
        for flag in ("mp", "pp", "microbatches"):
            if getattr(self, flag) != 1:
                raise InputError(f"--{flag} {getattr(self, flag)}: does not go with --hybrid {name}; valid is 1")
        for flag, value in (("schedule", self.schedule), ("stage", self.stages), ("chunks", self.chunks)):
            if value is not None:
                raise InputError(f"--{flag}: belongs to a pipeline, not to --hybrid {name}")
        if self.variable_batch and self.scheme == "a":
            raise InputError("--variable-batch: scheme a has one part, the whole batch; valid are --scheme b and c")

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
        return self.hybrid is None and (self.mp > 1 or bool(self.split))

    def as_dict(self) -> dict[str, Any]:
        """For JSON. No schedule is in use without a pipeline: null. Only that of a hybrid has the key `hybrid`."""
        hybrid = {"name": self.hybrid, "scheme": self.scheme, "variable_batch": self.variable_batch}
        return {
            "dp": self.dp,
            "mp": self.mp,
            "pp": self.pp,
            "schedule": self.schedule_name if self.is_pipelined else None,
            "microbatches": self.microbatches,
            "split": dict(self.split or {}),
            **({} if self.hybrid is None else {"hybrid": hybrid}),
        }

"""How a run uses the ranks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parallel_dl.errors import InputError, cut, named, number_of, unknown_name, up_to
from parallel_dl.files import as_written, read_table
from parallel_dl.partition import shares
from parallel_dl.refusals import refuse
from parallel_dl.schedule import SCHEMES, Plan, is_asynchronous, plan_of_hybrid_step, plan_of_step

HYBRIDS = ("owt",)

_KINDS = {int: "a whole number", str: "a string", bool: "true or false", list: "a list of strings", dict: "a table"}
_KEYS: dict[str, type] = {
    "dp": int,
    "mp": int,
    "pp": int,
    "microbatches": int,
    "split": dict,
    "schedule": str,
    "stages": list,
    "chunks": int,
    "hybrid": str,
    "scheme": str,
    "variable_batch": bool,
    "reproducible": bool,
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """`dp` replicas, each on `pp` x `mp` ranks, and each with a share of every one of the batch's `microbatches`.

    `split` says how the layers of a replica are divided among its `mp` ranks: it maps names of layers or groups to
    splits, see `splits.plan`; None takes the default. With several `pp` ranks, or with a `schedule`, it is a pipeline:
    stages start at the layers `stages` (None: balance the work), and `schedule` (None: 1f1b) orders their work;
    `chunks` is for the schedule "interleaved". Without a pipeline, several microbatches mean gradient accumulation: one
    update after all of them.

    With the `hybrid` "owt", the ranks of `dp` also share the layers after the first Flatten, and `split` applies only
    to these: see `hybrid.one_weird_trick`, with its `scheme` and `variable_batch`. With `reproducible`, results have
    the same bits in every layout (`parallel_dl.reproducible`): `dp` and `mp` must then divide `partition.LEAVES`, and
    the schedule must not be "pipedream". Raises InputError if these conditions do not hold, for numbers below 1, and
    for a hybrid with anything it cannot be combined with.
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
    reproducible: bool = False

    def __post_init__(self) -> None:
        for flag in ("dp", "mp", "pp", "microbatches"):
            if getattr(self, flag) < 1:
                raise InputError("must be at least 1", flag, getattr(self, flag))
        if self.hybrid is not None and self.hybrid not in HYBRIDS:
            raise unknown_name("`hybrid`", self.hybrid, HYBRIDS)
        if self.scheme not in SCHEMES:
            raise unknown_name("`scheme`", self.scheme, SCHEMES)
        refuse(vars(self))

    @classmethod
    def read(cls, path: str | Path) -> Layout:
        """The layout in a TOML file, whose keys are the names of the fields; `microbatches` is `pp` unless given.

        InputError, in one line that names the file and the key, for what `read_keys` refuses, for numbers below 1, for
        stages or chunks without a pipeline, and for a hybrid with anything it cannot be combined with.
        """
        keys = read_keys(path)
        try:
            layout = cls(**{"microbatches": max(1, keys.get("pp", 1)), **keys})
        except InputError as error:
            raise InputError(f"{named(path)}: {error}") from None
        for key in ("stages", "chunks"):
            if key in keys and not layout.is_pipelined:
                raise InputError(f"{named(path)}: {key}: needs a pipeline: pp above 1, or a schedule")
        return layout

    def require_training(self, *, clip_norm: float | None = None, **settings: Any) -> None:
        """Raises InputError for a norm that is not above 0, and for settings this layout cannot be combined with.

        `settings` are the `optimizer` (a name) and `allreduce` of a run; see `refusals.REFUSALS`.
        """
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise InputError("must be a finite number above 0", "clip_norm", clip_norm)
        refuse({**vars(self), "clip_norm": clip_norm, **settings})

    def require_clip_norm(self, clip_norm: float | None) -> None:
        """Raises InputError for a norm that is not above 0, or without a global gradient norm."""
        self.require_training(clip_norm=clip_norm)

    @property
    def ranks(self) -> int:
        """The number of ranks it takes."""
        return self.dp * self.mp * self.pp

    @property
    def is_pipelined(self) -> bool:
        """Whether the layers are in stages, run by a schedule; on one rank only if requested."""
        return self.pp > 1 or self.schedule is not None

    @property
    def schedule_name(self) -> str:
        """The schedule of a pipeline."""
        return "1f1b" if self.schedule is None else self.schedule

    @property
    def is_asynchronous(self) -> bool:
        """Whether a pipeline updates weights between microbatches."""
        return self.is_pipelined and is_asynchronous(self.schedule_name, self.pp, self.microbatches, self.chunks)

    def plan(self, batch_size: int | None = None, microbatches: int | None = None, partial: bool = False) -> Plan:
        """What each rank does in a step; rank p * dp + d is the p-th pipeline rank of replica d.

        `partial` says that ranks that split layers have summands of some gradients.

        Ranks that split the same layers do the same. Only the plan of a hybrid depends on `batch_size`, by default one
        in which no sub-batch is empty. PlanError for a schedule that does not fit.
        """
        count = self.microbatches if microbatches is None else microbatches
        if self.hybrid is not None:
            sizes = shares(count * self.dp**2 if batch_size is None else batch_size, count)
            return plan_of_hybrid_step(self.scheme, [shares(size, self.dp) for size in sizes], self.variable_batch)
        schedule = self.schedule_name if self.is_pipelined else None
        return plan_of_step(schedule, self.pp, count, self.chunks, self.dp, partial)

    def updates(self, samples: int, batch_size: int, epochs: int = 1, steps: int | None = None) -> int:
        """The number of updates in training: `steps`, or those of `epochs` epochs of `samples`.

        An asynchronous schedule updates once per microbatch. InputError if `steps` then end inside a batch, and for a
        batch with fewer samples than microbatches.
        """
        per_batch = self.microbatches if self.is_asynchronous else 1
        batches = math.ceil(samples / batch_size)
        in_all = epochs * batches * per_batch if steps is None else steps
        if per_batch == 1:
            return in_all
        if in_all % per_batch:
            raise InputError(
                f"{self.schedule_name} makes {per_batch} updates per batch, one per microbatch; "
                f"expected a multiple of {per_batch}",
                "steps",
                in_all,
            )
        last = samples - (batches - 1) * batch_size
        smallest = last if in_all >= batches * per_batch else batch_size
        if smallest < per_batch:
            raise InputError(
                f"{self.schedule_name} makes an update with each, but a batch has {number_of(smallest, 'sample')}; "
                f"{up_to(smallest)}",
                "microbatches",
                per_batch,
            )
        return in_all

    def require_microbatches(self, samples: int) -> None:
        """Raises InputError for more microbatches than samples in a batch; a pipeline may have as many as ranks."""
        most = max(samples, self.pp)
        if self.microbatches > most:
            said = f"a batch has {number_of(samples, 'sample')}; {up_to(most)}"
            raise InputError(said, "microbatches", self.microbatches)

    @property
    def splits_layers(self) -> bool:
        """Whether layers are split; on one rank only if requested."""
        return self.hybrid is None and (self.mp > 1 or bool(self.split))

    def as_dict(self) -> dict[str, Any]:
        """The layout for JSON. Without a pipeline, `schedule` is null; only a hybrid has the key `hybrid`."""
        hybrid = {"name": self.hybrid, "scheme": self.scheme, "variable_batch": self.variable_batch}
        return {
            "dp": self.dp,
            "mp": self.mp,
            "pp": self.pp,
            "schedule": self.schedule_name if self.is_pipelined else None,
            "microbatches": self.microbatches,
            "split": dict(self.split or {}),
            **({} if self.hybrid is None else {"hybrid": hybrid}),
            **({"reproducible": True} if self.reproducible else {}),
        }


def read_keys(path: str | Path) -> dict[str, Any]:
    """What a TOML file says of a layout: names of fields of `Layout` -> values of the fields' types.

    InputError, in one line with the file's name, for one that cannot be read or is not TOML, for an unknown key (with
    the nearest valid one), and for a value of another type.
    """
    try:
        keys = read_table(path, "a layout in TOML")
    except InputError as error:
        raise InputError(f"layout file {error}") from None
    for key, value in keys.items():
        if key not in _KEYS:
            raise InputError(f"{named(path)}: {unknown_name('key', key, _KEYS)}")
        _require_kind(f"{named(path)}: {key}", value, _KEYS[key])
        if _KEYS[key] is list:
            for name in value:
                _require_kind(f"{named(path)}: {key}, a list with", name, str)
        if _KEYS[key] is dict:
            for layer, way in value.items():
                hint = '; names with dots are in quotes, like "tower.fc1"' if type(way) is dict else ""
                _require_kind(f"{named(path)}: {key}.{cut(layer)}", way, str, hint)
    return keys


def _require_kind(what: str, value: Any, kind: type, hint: str = "") -> None:
    if type(value) is not kind:  # True is no number
        raise InputError(f"{what} {as_written(value)}: must be {_KINDS[kind]}{hint}")

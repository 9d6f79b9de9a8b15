"""The settings of a run that cannot be combined: one table, which `Layout` and the trainer apply and the docs print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from parallel_dl.errors import InputError, shown
from parallel_dl.partition import LEAVES
from parallel_dl.schedule import is_asynchronous

Settings = Mapping[str, Any]

_DIVISORS = ", ".join(str(n) for n in range(1, LEAVES + 1) if LEAVES % n == 0)


class Refusal(NamedTuple):
    """A setting refused in combination with others: fields of `Layout`, or arguments of `Trainer`."""

    field: str
    beside: str
    said: str
    """why, or what is valid; {name} is the value of another setting"""
    holds: Callable[[Settings], Any]
    example: Settings


def _asynchronous(s: Settings) -> bool:
    is_pipelined = s["pp"] > 1 or s["schedule"] is not None
    return is_pipelined and is_asynchronous(s["schedule"] or "1f1b", s["pp"], s["microbatches"], s["chunks"])


def _hybrid(field: str, value: Any) -> Refusal:
    """A number that must be 1 with a hybrid."""
    return Refusal(
        field,
        "`hybrid`",
        "must be 1 with `hybrid` {hybrid}",
        lambda s: s["hybrid"] and s[field] != 1,
        {"hybrid": "owt", field: value},
    )


def _pipeline(field: str, value: Any) -> Refusal:
    """A setting for pipelines, refused with a hybrid."""
    return Refusal(
        field,
        "`hybrid`",
        "needs a pipeline, and `hybrid` {hybrid} has none",
        lambda s: s["hybrid"] and s[field] is not None,
        {"hybrid": "owt", field: value},
    )


def _divides(field: str) -> Refusal:
    """A number of ranks that does not divide the leaves of a reproducible sum."""
    return Refusal(
        field,
        "`reproducible`",
        f"must be one of {_DIVISORS} with `reproducible`",
        lambda s: s["reproducible"] and LEAVES % s[field],
        {"reproducible": True, field: 3},
    )


REFUSALS = (
    Refusal(
        "variable_batch",
        "no `hybrid`",
        "needs `hybrid` owt",
        lambda s: not s["hybrid"] and s["variable_batch"],
        {"variable_batch": True},
    ),
    Refusal(
        "scheme",
        "no `hybrid`",
        "needs `hybrid` owt",
        lambda s: not s["hybrid"] and s["scheme"] != "a",
        {"scheme": "b"},
    ),
    _hybrid("mp", 2),
    _hybrid("pp", 2),
    _pipeline("schedule", "1f1b"),
    _pipeline("stages", ["fc1"]),
    _pipeline("chunks", 2),
    Refusal(
        "microbatches",
        "`variable_batch`",
        "must be 1 with `variable_batch`",
        lambda s: s["variable_batch"] and s["microbatches"] != 1,
        {"hybrid": "owt", "scheme": "b", "variable_batch": True, "microbatches": 2},
    ),
    Refusal(
        "variable_batch",
        "`scheme` a",
        "needs `scheme` b or c; scheme a has a single sub-batch, the whole batch",
        lambda s: s["variable_batch"] and s["scheme"] == "a",
        {"hybrid": "owt", "variable_batch": True},
    ),
    Refusal(
        "hybrid",
        "`reproducible`",
        "cannot be combined with `reproducible`; use `dp`, `mp` and `pp`",
        lambda s: s["hybrid"] and s["reproducible"],
        {"hybrid": "owt", "reproducible": True},
    ),
    _divides("dp"),
    _divides("mp"),
    Refusal(
        "schedule",
        "`reproducible`",
        "`reproducible` needs one update per batch; use 1f1b",
        lambda s: s["reproducible"] and _asynchronous(s),
        {"reproducible": True, "pp": 2, "schedule": "pipedream"},
    ),
    Refusal(
        "clip_norm",
        "an asynchronous `schedule`",
        "{schedule} updates each stage by itself, so there is no global gradient norm; use a synchronous schedule",
        lambda s: s.get("clip_norm") is not None and _asynchronous(s),
        {"clip_norm": 1.0, "pp": 2, "schedule": "pipedream"},
    ),
    Refusal(
        "clip_norm",
        "`variable_batch`",
        "with `variable_batch` layers are updated after each sub-batch, so there is no global gradient norm; "
        "use only one of the two",
        lambda s: s.get("clip_norm") is not None and s["variable_batch"],
        {"clip_norm": 1.0, "hybrid": "owt", "scheme": "b", "variable_batch": True},
    ),
    Refusal(
        "allreduce",
        "`reproducible`",
        "`reproducible` sums in its own fixed tree; use only one of the two",
        lambda s: s.get("allreduce", "auto") != "auto" and s["reproducible"],
        {"allreduce": "mpi", "reproducible": True},
    ),
)
"""every combination that is refused, whatever the network and the data are"""


def refuse(settings: Settings) -> None:
    """Raises InputError for the first row of the table that holds for these settings, by name."""
    for row in REFUSALS:
        if row.holds(settings):
            value = settings[row.field]
            told = None if value is True or isinstance(value, list | tuple) else value
            raise InputError(
                row.said.format_map(settings), row.field, told if not isinstance(told, str) else _word(told)
            )


def _word(text: str) -> str:
    return text if text.isprintable() and len(text) < 40 else shown(text)

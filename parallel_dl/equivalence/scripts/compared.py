"""Where a run of a script first differs from its serial run, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parallel_dl.equivalence.compare import patterns
from parallel_dl.equivalence.compare.arrays import BOUNDS
from parallel_dl.equivalence.scripts.causes import cause_of_gradient, cause_of_samples
from parallel_dl.equivalence.scripts.files import BEFORE, GRADIENT, WATCHED, WEIGHT, Update
from parallel_dl.equivalence.scripts.runs import ScriptRun
from parallel_dl.equivalence.scripts.shares import batches
from parallel_dl.equivalence.scripts.whole import Whole, distance, largest, names_of, whole
from parallel_dl.errors import number_of
from parallel_dl.watchdog.picture import named

EQUAL, DIFFERENT, FAILED = "equal", "different", "failed"
ANOTHER_BATCH, NOT_DETERMINISTIC, NOTHING = "another global batch", "not deterministic", "nothing recorded"
_AMPLIFIED = 100.0  # times the growth of changes in the last bit that is still taken for rounding


@dataclasses.dataclass
class Verdict:
    """What one run is, compared with the serial one."""

    ranks: int
    verdict: str
    updates: int
    """that were compared"""
    update: int | None = None
    """the first that is different, from 0"""
    what: str = ""
    """what is different there: a gradient, weights, ..."""
    name: str = ""
    """of the parameter, or as it was given to `watch`"""
    error: float | None = None
    bound: float | None = None
    cause: str = ""
    losses: list[float] = dataclasses.field(default_factory=list)
    """of the update that is different: the serial one, and each rank's"""

    def as_object(self) -> dict[str, Any]:
        """The JSON object of it; what is not finite is None."""
        told = dataclasses.asdict(self)
        for key in ("error", "bound"):
            told[key] = told[key] if told[key] is not None and np.isfinite(told[key]) else None
        told["losses"] = [loss if np.isfinite(loss) else None for loss in self.losses]
        return told

    @property
    def line(self) -> str:
        """In one sentence."""
        if self.verdict == EQUAL:
            return f"equal: {number_of(self.updates, 'update')}, worst error {self.error or 0:.1e}"
        if self.verdict != DIFFERENT:
            return f"{self.verdict}: {self.cause}"
        at = f"update {self.update}" if self.update is not None else "the start"
        by = "" if self.error is None or not np.isfinite(self.error) else f" by {self.error:.1e}"
        bound = f" (bound {self.bound:.0e})" if by and self.bound else ""
        why = f"; likely: {self.cause}" if self.cause else ""
        return f"DIFFERENT from {at} on: {self.what}{by}{bound}{why}"


class _Parted(Exception):
    """Two runs part here."""

    def __init__(self, what: str, name: str = "", error: float | None = None, cause: str = "") -> None:
        self.what, self.name, self.error, self.cause = what, name, error, cause
        self.bound: float | None = None
        self.verdict = DIFFERENT


def not_deterministic(first: ScriptRun, second: ScriptRun) -> str:
    """How two equal runs differ; empty if they do not."""
    for number, (a, b) in enumerate(zip(_by_update(first), _by_update(second))):
        for one, other in zip(a, b):
            for key in dict.fromkeys((*one.arrays, *other.arrays)):
                if not _is_same(one.arrays.get(key), other.arrays.get(key)):
                    runs = f"two runs on {number_of(first.ranks, 'rank')}"
                    return f"{runs} differ from update {number} on ({key.partition('/')[2]}): set a seed"
    return ""


def _is_same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")


def compare_runs(serial: ScriptRun, nudged: ScriptRun | None, run: ScriptRun) -> Verdict:
    """Compares a run with the serial one, update by update.

    Values are equal if they differ by no more than the bound of their type, relative to the largest value, or by a
    hundred times what `nudged`, a serial run with weights changed in their last bits, differs by there.
    """
    wanted, found = _by_update(serial), _by_update(run)
    if not wanted:
        return Verdict(
            run.ranks, NOTHING, 0, cause="no optimizer of parallel_dl made an update, and nothing was watched"
        )
    worst = 0.0
    nudges = _by_update(nudged) if nudged is not None else []
    for number, (a, b) in enumerate(zip(wanted, found)):
        before = wanted[number - 1] if number else ()
        noise = nudges[number] if number < len(nudges) else None
        try:
            after = found[number + 1] if number + 1 < len(found) else ()
            worst = max(worst, _compare_update(a, b, before, after, noise, number))
        except _Parted as parted:
            losses = [one.losses[-1] for one in (a[0], *b) if one.losses]
            return Verdict(
                run.ranks, parted.verdict, number, number, parted.what, parted.name, parted.error, parted.bound,
                parted.cause, losses,
            )  # fmt: skip
    if (uneven := _uneven(serial, run)) is not None and (not run.status or _is_far(run)):
        return uneven
    if run.status:
        why = f"the run on {number_of(run.ranks, 'rank')} ended with status {run.status}"
        return Verdict(run.ranks, FAILED, len(found), cause=f"{why}: {run.said}" if run.said else why)
    return Verdict(run.ranks, EQUAL, len(wanted), error=worst)


def _by_update(run: ScriptRun) -> list[list[Update]]:
    """Update -> rank -> what it wrote; as many updates as the rank with the fewest has."""
    return [list(ranks) for ranks in zip(*run.updates)]


def _is_far(run: ScriptRun) -> bool:
    """Whether its ranks' numbers of updates differ by more than where a failure finds them."""
    counts = [len(updates) for updates in run.updates]
    return bool(counts) and max(counts) - min(counts) > 1


def _uneven(serial: ScriptRun, run: ScriptRun) -> Verdict | None:
    """A verdict on numbers of updates that are not all the same."""
    counts = [len(updates) for updates in run.updates] or [0]
    wanted = len(serial.updates[0]) if serial.updates else 0
    if set(counts) == {wanted}:
        return None
    if len(set(counts)) > 1:
        most = max(counts)
        few = [rank for rank, count in enumerate(counts) if count < most]
        made = number_of(counts[few[0]], "update")
        verb = "makes" if len(few) == 1 else "make"
        cause = f"{named(few)} {verb} only {made} where others make {most}: is step() called on some ranks only?"
    else:
        cause = (
            f"{number_of(counts[0], 'update')}, serially {wanted}: the number depends on the ranks' shares of the data"
        )
    return Verdict(
        run.ranks, DIFFERENT, min(*counts, wanted), min(*counts, wanted), "the number of updates", cause=cause
    )


def _compare_update(
    serial: Sequence[Update],
    ranks: Sequence[Update],
    before: Sequence[Update],
    after: Sequence[Update],
    noise: Sequence[Update] | None,
    number: int,
) -> float:
    """The largest error in one update; _Parted where the runs part."""
    worst = 0.0
    if number == 0:
        worst = _compare_kind(serial, ranks, noise, BEFORE)
    wanted, found = batches(serial, ranks)
    samples = cause_of_samples(serial, ranks)
    if wanted.size and found.size and wanted.size != found.size and not samples:
        there = f"{number_of(found.size, 'sample')} in an update on {number_of(len(ranks), 'rank')}"
        parted = _Parted("samples", cause=f"{there}, {wanted.size:,} on {number_of(len(serial), 'rank')}")
        parted.verdict = ANOTHER_BATCH
        raise parted
    try:
        worst = max(worst, _compare_kind(serial, ranks, noise, GRADIENT))
    except _Parted as parted:
        parted.cause = samples or cause_of_gradient(serial, ranks, before, after) or parted.cause
        raise
    for kind in (WATCHED, WEIGHT):
        worst = max(worst, _compare_kind(serial, ranks, noise, kind))
    return worst


_WHAT = {
    BEFORE: "the first values of {}",
    GRADIENT: "the gradient of {}",
    WEIGHT: "{} after the update",
    WATCHED: "{}",
}


def _compare_kind(
    serial: Sequence[Update], ranks: Sequence[Update], noise: Sequence[Update] | None, kind: str
) -> float:
    worst = 0.0
    scale = max((largest(a) for a in serial[0].of_kind(kind).values() if a.dtype.kind == "f"), default=0)
    names = names_of([*serial, *ranks], [kind])
    for name in names:
        try:
            wanted, found = whole(serial, kind, name), whole(ranks, kind, name)
        except ValueError as error:
            raise _Parted(_WHAT[kind].format(name), name, cause=str(error)) from None
        if wanted is None or found is None:
            where = "serially" if wanted is not None else f"on {number_of(len(ranks), 'rank')}"
            raise _Parted(_WHAT[kind].format(name), name, cause=f"there is one only {where}")
        bound = _bound(wanted, None if noise is None else whole(noise, kind, name), scale)
        worst = max(worst, _compare_one(wanted, found, kind, name, len(ranks), bound))
    return worst


def _bound(wanted: Whole, nudged: Whole | None, scale: float) -> float:
    """The error, relative to the largest value, that rounding may cause."""
    values = wanted.values
    bound = BOUNDS.get(str(values.dtype), 0.0 if values.dtype.kind in "biu" else 1e-10)
    own = largest(values)
    if own and scale and bound:  # a gradient that is zero in theory is as exact as those beside it
        bound = max(bound, bound * min(scale / own, 1e6) * 1e-2)
    if nudged is not None and nudged.values.shape == values.shape and values.dtype.kind == "f":
        bound = max(bound, _AMPLIFIED * distance(values, nudged.values))
    return bound


def _compare_one(wanted: Whole, found: Whole, kind: str, name: str, ranks: int, bound: float) -> float:
    apart = {rank: error for rank, error in found.others.items() if error > bound}
    error = distance(wanted.values, found.values)
    if wanted.values.shape != found.values.shape or not error <= bound or apart or found.lacking != wanted.lacking:
        parted = _Parted(_WHAT[kind].format(name), name, max([error, *apart.values()]))
        parted.bound = bound
        parted.cause = _cause(wanted, found, kind, ranks, apart, error <= bound)
        raise parted
    return error


def _cause(wanted: Whole, found: Whole, kind: str, ranks: int, apart: Mapping[int, float], first_is_right: bool) -> str:
    if apart and kind == BEFORE:
        starts = "starts" if len(apart) == 1 else "start"
        return f"{named(apart)} {starts} with other weights than rank 0: another seed?"
    if apart and kind == WEIGHT and first_is_right:
        has = "has" if len(apart) == 1 else "have"
        return f"only {named(apart)} {has} other weights after the update"
    if apart:
        return "the ranks' copies are not the same"
    if kind == BEFORE:
        return "the weights at the start depend on the number of ranks: another seed?"
    if kind == WEIGHT:
        return "the gradients are equal, so it is the update itself: the learning rate, or state of the optimizer"
    if kind == WATCHED and wanted.values.dtype.kind in "fiu":
        return _relation(wanted.values.astype(float), found.values.astype(float), ranks)
    return ""


def _relation(a: np.ndarray, b: np.ndarray, ranks: int) -> str:
    """What the ranks' b is of the serial a."""
    order = patterns.exchanged_axes(a, b)
    if order is not None:
        return f"its axes are in the order {order}"
    if a.shape != b.shape:
        return f"shape {b.shape}, serially {a.shape}: are the shards along another axis?"
    factor = patterns.factor(a, b)
    if ranks > 1 and factor is not None and factor > 0:
        if patterns.whole(factor) == ranks:
            return f"{ranks} times the serial values: summed over ranks that all have the whole?"
        if patterns.whole(1 / factor) == ranks:
            return f"1/{ranks} of the serial values: divided by the number of ranks once too often?"
    return ""

"""Compares a parallel run with the serial one: are they equal, and if not, where and by how much do they differ?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from parallel_dl.equivalence.rounding.magnitudes import scale
from parallel_dl.equivalence.runs.outcome import EVALUATED, unlike
from parallel_dl.errors import number_of

if TYPE_CHECKING:
    from parallel_dl.equivalence.runs.record import Run

BOUNDS = {"float64": 1e-10, "float32": 1e-5}
VOID = {"float64": 1e-6, "float32": 1e-2}  # noise above which nothing can be told
MOVED_RUNS, MANY_MOVED_RUNS = 2, 6  # from which the noise is taken
OF_TOTALS = 10  # times the noise: what is added to it where totals of batch norm are played back
ABOVE_NOISE = 10  # times its noise is what a quantity may be off by

Noise = list[dict[str, float]]
"""by step: quantity -> how far rounding moves it, relative to the sum of magnitudes"""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference in one quantity at one step, relative to the sum of the magnitudes that were added."""

    quantity: str
    step: int
    error: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`equal`, the worst difference found, its bound, and a sentence."""

    equal: bool
    worst: Difference
    bound: float
    message: str
    void_from: int | None = None
    """the first step that rounding makes meaningless; it and later steps were not compared"""
    note: str = ""
    """which steps and quantities were not compared, and why"""


def compare(serial: Run, parallel: Run, bound: float | None = None, exact: bool = False) -> Comparison:
    """Compares losses, gradients, optimizer state and weights of every step, and the results after the last one.

    The results are the outputs in evaluation mode, the test loss and accuracy, the update counts, the digest of the
    weights, and whether loaded weights are read back unchanged.

    `bound` is relative to the sum of the magnitudes that were added (by default 1e-10 in float64, 1e-5 in float32). The
    noise of a quantity at a step is how far rounding alone moves it in the serial run: if ten times the noise is larger
    than the bound, it replaces the bound, and a quantity whose noise is above `VOID` is not compared. `exact` demands
    equal bits (for integer-valued data, where every order of summation is exact). Replicas must always be bitwise equal
    to each other. Infinities are equal to themselves.
    """
    if serial.magnitudes is None:
        raise ValueError("the first run must be a serial one: it measures the magnitudes")
    limits = _Limits(serial, bound, exact)
    if not parallel.replicas_equal:
        return _different(Difference("replicas", len(parallel.losses), np.inf), limits.bound, "the replicas differ")
    if len(serial.losses) != len(parallel.losses):
        steps = number_of(len(serial.losses), "step")
        message = f"{steps} in the serial run, {len(parallel.losses)} in the parallel one"
        return _different(Difference("steps", 0, np.inf), limits.bound, message)
    if not exact and not serial.repeats:
        message = "the serial run differs each time: it draws from a generator, or reads a state, that is not its own"
        worst = Difference("the serial run, which differs each time,", 0, np.inf)
        return Comparison(False, worst, limits.bound, message, note=message)
    if limits.void_from == 0:
        worst, message = Difference("the serial run, which rounding alone changes,", 0, np.inf), limits.said()
        return Comparison(False, worst, limits.bound, message, limits.void_from, message)
    worst, held, excess = Difference("nothing", 0, 0.0), limits.bound, 0.0
    for quantity, step, error, limit in _judged(serial, parallel, limits):
        over = error / limit if limit else (np.inf if error else 0.0)
        if over > excess or (over == excess and error > worst.error):
            worst, held, excess = Difference(quantity, step, error), limit, over
    equal = worst.error <= held
    other = unlike(serial.outcome, parallel.outcome) if equal else None
    if other is not None:
        equal, worst = False, Difference(other, len(serial.losses) - 1, np.inf)
    verdict = "equal" if equal else "DIFFERENT"
    at = f"worst is {worst.quantity} at step {worst.step}, {worst.error:.2e}" if worst.error else "no difference at all"
    message = f"{verdict}: {at} (bound {held:.0e})"
    note = limits.said()
    return Comparison(equal, worst, held, f"{message}; {note}" if note and equal else message, limits.void_from, note)


def assert_same(serial: Run, parallel: Run, bound: float | None = None, exact: bool = False) -> None:
    """Raises AssertionError, naming the worst difference, unless `compare` finds the runs equal."""
    comparison = compare(serial, parallel, bound, exact)
    assert comparison.equal, comparison.message


def first_different_step(serial: Run, parallel: Run, bound: float | None = None, exact: bool = False) -> int | None:
    """The first step in which something is different; None when nothing is, or only other replicas are."""
    found = first_difference(serial, parallel, bound, exact)
    return None if found is None else found.step


def first_difference(
    serial: Run, parallel: Run, bound: float | None = None, exact: bool = False, buffers: bool = True
) -> Difference | None:
    """The first quantity that is different, in the order of steps; None when nothing is, or only other replicas are.

    Without `buffers` theirs do not count: whoever reads one has another loss, gradient or output for it.
    """
    left_out = set() if buffers else {f"weight of {name}" for name in serial.buffers}
    for quantity, step, error, limit in _judged(serial, parallel, _Limits(serial, bound, exact)):
        if not error <= limit and quantity not in left_out:
            return Difference(quantity, step, error)
    return None


def samples_are_mixed(serial: Run, by_samples: Run) -> Difference | None:
    """Where the serial run is not the sum of its samples, which a replay adds up one by one; None where it is.

    What rounding explains does not count. Otherwise the bound is a tenth of the usual one in float64; in float32 and
    with batch norm, the usual one. The replay uses totals of batch norm that were recorded with other last bits, so
    terms that cancel in every other run do not cancel there. Where that moves one tensor, it moves all from then on.
    """
    dtype = _dtype(serial)
    if any(name.endswith("running_var") for name in serial.weights[0]):
        limits: _Limits = _LimitsOfTotals(serial, None, exact=False)
    else:
        limits = _Limits(serial, BOUNDS[dtype] / (10 if dtype == "float64" else 1), exact=False)
    found = [
        (error / limit, Difference(quantity, step, error))
        for quantity, step, error, limit in _judged(serial, by_samples, limits)
        if not error <= limit
    ]
    return max(found, key=lambda one: one[0])[1] if found else None


def measured_noise(serial: Run, move: Callable[[int], Run], may_jump: bool = False) -> Noise:
    """The noise of `serial`, from runs `move(seed)` that differ from it by rounding alone.

    Where rounding grows during training, or may by itself move a weight as far as any gradient (`may_jump`), the noise
    differs much from run to run, so more runs are made.
    """
    moved = [move(seed) for seed in range(MOVED_RUNS)]
    noise = noise_of(serial, moved)
    bound = BOUNDS[_dtype(serial)]
    if may_jump or any(float(np.median(list(errors.values()))) > bound for errors in noise if errors):
        moved += [move(seed) for seed in range(MOVED_RUNS, MANY_MOVED_RUNS)]
        noise = noise_of(serial, moved)
    return noise


def noise_of(serial: Run, moved: Sequence[Run]) -> Noise:
    """Of each quantity at each step the largest error of these runs, which differ from `serial` by rounding alone.

    No quantity counts as less noisy than it was a step before, or than half of all quantities: a few values may agree
    by chance.
    """
    found: Noise = [{} for _ in serial.losses]
    for run in moved:
        for quantity, step, ours, theirs, magnitude in _pairs(serial, run):
            error = np.inf if ours is None or theirs is None else _error(ours, theirs, magnitude)
            found[step][quantity] = max(error, found[step].get(quantity, 0.0))
    for step, errors in enumerate(found):
        usual = float(np.median(list(errors.values()))) if errors else 0.0
        before = found[step - 1] if step else {}
        for quantity in errors:
            errors[quantity] = max(errors[quantity], usual, before.get(quantity, 0.0))
    return found


class _Limits:
    """What a quantity may be off by, step by step."""

    def __init__(self, serial: Run, bound: float | None, exact: bool) -> None:
        dtype = _dtype(serial)
        self.exact = exact
        self.bound = 0.0 if exact else BOUNDS[dtype] if bound is None else bound
        self.noise: Noise = [] if exact or serial.noise is None else serial.noise
        self._void, self._steps, self._losses = VOID[dtype], len(serial.losses), serial.losses
        self.void_from: int | None = None
        for step, loss in enumerate(serial.losses):
            errors = list(self.noise[step].values()) if self.noise else []
            if (errors and float(np.median(errors)) >= self._void) or math.isnan(loss):
                self.void_from = step
                break

    def of(self, quantity: str, step: int) -> float:
        """Infinite where nothing can be said."""
        if self.void_from is not None and step >= self.void_from:
            return np.inf
        noise = self.noise[step].get(quantity, 0.0) if self.noise else 0.0
        return np.inf if noise >= self._void else max(self.bound, ABOVE_NOISE * noise)

    def said(self) -> str:
        """Which steps and quantities were not compared, and why; "" if all were."""
        if not self.noise and self.void_from is None:
            return ""
        compared = self.noise[: self.void_from]
        if self.void_from is not None:
            first, last = self.void_from, self._steps - 1
            steps = f"steps {first} to {last} are" if last > first else f"step {first} is"
            return f"{steps} not compared: {self._growth(first)}"
        lost = {quantity for errors in compared for quantity, noise in errors.items() if noise >= self._void}
        if not lost:
            return ""
        names = ", ".join(sorted(lost)[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        return f"not compared, as rounding alone moves it by {self._void:.0e} or more: {names}"

    def _growth(self, void_from: int) -> str:
        levels = [float(np.median(list(errors.values()))) for errors in self.noise[: void_from + 1]]
        if not math.isfinite(self._losses[void_from]):
            return "the serial run itself is not finite there"
        if not levels or math.isnan(levels[-1]) or levels[-1] < self._void:
            return "the serial run itself is not finite there"
        if math.isinf(levels[-1]):
            return "rounding alone decides there what is zero in the serial run"
        reached = f"rounding alone moves the serial run by {levels[-1]:.0e} there"
        if len(levels) < 3 or not levels[0] > 0:
            return reached
        growth = (levels[-1] / levels[0]) ** (1 / (len(levels) - 1))
        return f"{reached}; it grows by a factor of {growth:.2g} per step, which is chaos, not a bug"


class _LimitsOfTotals(_Limits):
    """For a replay in which totals of batch norm are played back: the largest noise so far counts for all tensors."""

    def of(self, quantity: str, step: int) -> float:
        noise = max((max(errors.values(), default=0.0) for errors in self.noise[: step + 1]), default=0.0)
        return np.inf if noise >= self._void else max(super().of(quantity, step), ABOVE_NOISE * OF_TOTALS * noise)


def _judged(serial: Run, parallel: Run, limits: _Limits) -> Iterator[tuple[str, int, float, float]]:
    """(quantity, step, error, what it may be) of everything that can be judged, in order."""
    for quantity, step, ours, theirs, magnitude in _pairs(serial, parallel):
        limit = limits.of(quantity, step)
        if ours is None or theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            yield quantity, step, np.inf, limits.bound
        elif limits.exact and quantity in EVALUATED:  # whole numbers are exact in training only
            error = _error(ours, theirs, magnitude)
            yield quantity, step, 0.0 if error <= BOUNDS["float64"] else error, limit
        elif math.isfinite(limit):
            yield quantity, step, _error(ours, theirs, None if limits.exact else magnitude), limit


def _different(what: Difference, bound: float, message: str) -> Comparison:
    return Comparison(False, what, bound, message)


def _dtype(serial: Run) -> str:
    return str(next(iter(serial.weights[-1].values())).dtype)


def _error(ours: np.ndarray, theirs: np.ndarray, magnitude: np.ndarray | None) -> float:
    """The largest difference by its magnitude. Equal infinities are no difference, nor are two NaN."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return np.inf
    different = ours != theirs
    if ours.dtype.kind == "f":
        different &= ~(np.isnan(ours) & np.isnan(theirs))
    if not different.any():
        return 0.0
    dtype = ours.dtype
    ours, theirs = ours[different].astype(float), theirs[different].astype(float)
    if not (np.isfinite(ours) & np.isfinite(theirs)).all():
        return np.inf
    difference = np.abs(ours - theirs)
    if magnitude is None:
        return float(difference.max())
    if dtype.kind == "f" and difference.max() <= np.finfo(dtype).tiny:  # there numbers have fewer digits
        return 0.0
    against = scale(magnitude)[different]
    if not np.isfinite(against).all():  # nothing that a difference could be judged against
        return np.inf
    with np.errstate(divide="ignore"):
        return float((difference / against).max())


def _pairs(
    serial: Run, parallel: Run
) -> Iterator[tuple[str, int, np.ndarray | None, np.ndarray | None, np.ndarray | None]]:
    """(quantity, step, serial's, parallel's, magnitudes) of everything recorded; None where one run has nothing."""
    assert serial.magnitudes is not None
    for step, magnitudes in enumerate(serial.magnitudes):
        ours, theirs = (np.array([run.losses[step]]) for run in (serial, parallel))
        yield "loss", step, ours, theirs, magnitudes["losses"][""]
        for kind in ("gradients", "state", "weights"):
            arrays, others = getattr(serial, kind)[step], getattr(parallel, kind)[step]
            for name in sorted(arrays.keys() | others.keys()):
                quantity = f"{kind.removesuffix('s')} of {name}"
                yield quantity, step, arrays.get(name), others.get(name), magnitudes[kind].get(name)
    ours_at_the_end, theirs_at_the_end = serial.outcome, parallel.outcome
    if ours_at_the_end is None or theirs_at_the_end is None or not theirs_at_the_end.evaluation:
        return
    for name, magnitude in (ours_at_the_end.magnitudes or {}).items():
        evaluated = ours_at_the_end.evaluation[name], theirs_at_the_end.evaluation.get(name)
        yield name, len(serial.losses) - 1, *evaluated, magnitude

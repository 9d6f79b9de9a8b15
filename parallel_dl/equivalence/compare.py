"""Compares a parallel run with the serial one: equal, or where and by how much not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from parallel_dl.equivalence.magnitudes import scale
from parallel_dl.equivalence.outcome import EVALUATED, unlike
from parallel_dl.equivalence.record import Run
from parallel_dl.errors import number_of

BOUNDS = {"float64": 1e-10, "float32": 1e-5}


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference in one quantity at one step, relative to the sum of the magnitudes that were added."""

    quantity: str
    step: int
    error: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`equal`, the worst difference found, the bound it was held against, and a sentence."""

    equal: bool
    worst: Difference
    bound: float
    message: str


def compare(serial: Run, parallel: Run, bound: float | None = None, exact: bool = False) -> Comparison:
    """Compares losses, gradients, optimizer state and weights of every step, and what is left after the last one.

    That is: the outputs in evaluation mode, the test loss and accuracy, how many updates were counted, the digest of
    the weights, and whether weights that are loaded are those that are read back.

    `bound` is relative to the sum of the magnitudes that were added up (1e-10 in float64, 1e-5 in float32 unless
    given). `exact` demands equal bits (integer-valued data, where every order of summation is exact). Replicas must
    in any case be bitwise equal to each other.
    """
    if serial.magnitudes is None:
        raise ValueError("the first run must be a serial one: it measures the magnitudes")
    bound = _bound(serial, bound, exact)
    worst = Difference("nothing", 0, 0.0)
    if not parallel.replicas_equal:
        return Comparison(False, Difference("replicas", len(parallel.losses), np.inf), bound, "the replicas differ")
    if len(serial.losses) != len(parallel.losses):
        message = (
            f"{number_of(len(serial.losses), 'step')} in the serial run, {len(parallel.losses)} in the parallel one"
        )
        return Comparison(False, Difference("steps", 0, np.inf), bound, message)
    for quantity, step, ours, theirs, magnitude in _pairs(serial, parallel):
        error = _error_of(quantity, ours, theirs, magnitude, exact)
        if error > worst.error:
            worst = Difference(quantity, step, error)
    equal = worst.error <= bound
    other = unlike(serial.outcome, parallel.outcome) if equal else None
    if other is not None:
        equal, worst = False, Difference(other, len(serial.losses) - 1, np.inf)
    verdict = "equal" if equal else "DIFFERENT"
    at = f"worst is {worst.quantity} at step {worst.step}, {worst.error:.2e}" if worst.error else "no difference at all"
    message = f"{verdict}: {at} (bound {bound:.0e})"
    return Comparison(equal, worst, bound, message)


def assert_same(serial: Run, parallel: Run, bound: float | None = None, exact: bool = False) -> None:
    """Raises AssertionError, naming the worst difference, unless `compare` finds the runs equal."""
    comparison = compare(serial, parallel, bound, exact)
    assert comparison.equal, comparison.message


def first_different_step(serial: Run, parallel: Run, bound: float | None = None, exact: bool = False) -> int | None:
    """The first step in which something is different; None when only other replicas are, or nothing."""
    bound = _bound(serial, bound, exact)
    for quantity, step, ours, theirs, magnitude in _pairs(serial, parallel):
        if _error_of(quantity, ours, theirs, magnitude, exact) > bound:
            return step
    return None


def _bound(serial: Run, bound: float | None, exact: bool) -> float:
    dtype = str(next(iter(serial.weights[0].values())).dtype)
    return 0.0 if exact else BOUNDS[dtype] if bound is None else bound


def _error_of(
    quantity: str, ours: np.ndarray | None, theirs: np.ndarray | None, magnitude: np.ndarray | None, exact: bool
) -> float:
    if ours is None or theirs is None:
        return np.inf
    if exact and quantity in EVALUATED:  # whole numbers are exact in training only
        error = _error(ours, theirs, magnitude)
        return 0.0 if error <= BOUNDS["float64"] else error
    return _error(ours, theirs, None if exact else magnitude)


def _error(ours: np.ndarray, theirs: np.ndarray, magnitude: np.ndarray | None) -> float:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or not (np.isfinite(ours) & np.isfinite(theirs)).all():
        return np.inf
    difference = np.abs(ours - theirs)
    different = difference > 0
    if not different.any():
        return 0.0
    if magnitude is None:
        return float(difference.max())
    if not np.isfinite(magnitude).all():  # nothing that a difference could be held against
        return np.inf
    with np.errstate(divide="ignore"):
        return float((difference[different] / scale(magnitude)[different]).max())


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

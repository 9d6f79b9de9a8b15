"""Patterns in two arrays that differ: a factor, exchanged axes, slices in another order, a shift, missing summands.

Each is the trace of one kind of mistake in a parallel program: `b` is what has become of `a`. A pattern fits up to
`tolerance` of the largest value; None says that it does not. Arrays that are equal up to that have none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

Array = np.ndarray

SAME = 1e-6
"""the tolerance, also of factors that are said to be whole numbers"""
_MOST_AXES = 4  # of arrays whose axes may have been exchanged: 24 orders
_MOST_SUMMANDS = 8  # whose subsets are tried


def error(a: Array, b: Array) -> float:
    """The largest |a - b| over the largest |a| or |b|; 0 for arrays without values, or of zeros."""
    largest = max((float(np.abs(array).max()) for array in (a, b) if array.size), default=0.0)
    return float(np.abs(a - b).max()) / largest if largest else 0.0


def close(a: Array, b: Array, tolerance: float = SAME) -> bool:
    """Whether a is b, and b is neither zero nor infinite, of which nothing could be said."""
    largest = float(np.abs(b).max()) if b.size else 0.0
    return a.shape == b.shape and 0 < largest < math.inf and float(np.abs(a - b).max()) <= tolerance * largest


def factor(a: Array, b: Array, tolerance: float = SAME) -> float | None:
    """The number c for which b = c a."""
    if a.shape != b.shape or not a.size or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    largest = np.abs(a).max()
    if not largest:
        return None
    scaled = a / largest  # its squares neither overflow nor vanish
    c = np.vdot(scaled, b / largest) / np.vdot(scaled, scaled)
    return float(c) if error(c * a, b) <= tolerance else None


def whole(number: float, tolerance: float = SAME) -> int | None:
    """The whole number that this is, up to the tolerance of it; None for 0, too."""
    if not math.isfinite(number) or not round(number):
        return None
    return round(number) if abs(number - round(number)) < tolerance * abs(number) else None


def exchanged_axes(a: Array, b: Array, tolerance: float = SAME) -> tuple[int, ...] | None:
    """The order that a's axes have in b."""
    if not 2 <= a.ndim == b.ndim <= _MOST_AXES or close(a, b, tolerance):
        return None
    orders = itertools.islice(itertools.permutations(range(a.ndim)), 1, None)  # the first is a's own
    return next((order for order in orders if close(a.transpose(order), b, tolerance)), None)


def order_of_slices(
    a: Array, b: Array, parts: Iterable[int], axes: Iterable[int] | None = None, tolerance: float = SAME
) -> tuple[int, list[int]] | None:
    """(axis, which of a's slices is at each place in b), for the first of these numbers of slices along an axis.

    Slices of one length are tried first; others differ by one at most, as shards do.
    """
    if a.shape != b.shape or close(a, b, tolerance):
        return None
    numbers = list(parts)
    for axis in range(a.ndim) if axes is None else axes:
        others = tuple(other for other in range(a.ndim) if other != axis)
        sums = [np.abs(array).sum(axis=others) for array in (a, b)]  # a number for each place: the search is cheap
        for number in _equal_first(numbers, a.shape[axis]):
            order = _order_along(a, b, axis, number, sums, tolerance)
            if order is not None:
                return axis, order
    return None


def _equal_first(numbers: Iterable[int], length: int) -> list[int]:
    """Those into which this length can be cut, first those with slices of one length."""
    return sorted((number for number in numbers if 1 < number <= length), key=lambda number: length % number > 0)


def _order_along(
    a: Array, b: Array, axis: int, parts: int, sums: Sequence[Array], tolerance: float
) -> list[int] | None:
    slices = np.array_split(np.arange(a.shape[axis]), parts)
    reach = tolerance * float(np.abs(b).max(initial=0.0))
    of_sums = reach * (a.size // a.shape[axis])

    def is_at(number: int, start: int) -> bool:
        chosen, places = slices[number], np.arange(start, min(start + len(slices[number]), a.shape[axis]))
        if len(chosen) != len(places) or np.abs(sums[0][chosen] - sums[1][places]).max() > of_sums:
            return False
        return float(np.abs(a.take(chosen, axis) - b.take(places, axis)).max(initial=0.0)) <= reach

    order: list[int] = []
    start = 0
    while len(order) < parts:
        found = next((number for number in range(parts) if number not in order and is_at(number, start)), None)
        if found is None:
            return None
        order.append(found)
        start += len(slices[found])
    return order


def shift(a: Array, b: Array, axis: int, most: int) -> int | None:
    """By how many places along an axis, up to `most`, b is a, where both have values."""
    size = a.shape[axis]
    for by in range(1, min(most, size - 1) + 1):
        first, last = np.arange(size - by), np.arange(by, size)
        if any(close(b.take(ours, axis), a.take(theirs, axis)) for ours, theirs in ((first, last), (last, first))):
            return by
    return None


def add_up(summands: Sequence[Array], total: Array) -> bool:
    """Whether there are several, and their sum is the total."""
    alike = len(summands) > 1 and all(array.shape == total.shape for array in summands)
    return alike and close(np.sum(summands, axis=0), total)


def missing(summands: Sequence[Array], total: Array) -> list[int] | None:
    """Which summands the total lacks, if it is the sum of the others; None when it is not."""
    numbers = range(len(summands) if len(summands) <= _MOST_SUMMANDS else 0)
    for count in numbers[1:]:
        for chosen in itertools.combinations(numbers, count):
            if close(total, np.sum([summands[number] for number in chosen], axis=0)):
                return [number for number in numbers if number not in chosen]
    return None


def counts(summands: Sequence[Array], total: Array) -> list[int] | None:
    """How often each of several summands is in the total, if each is in it a whole number of times."""
    if not 1 < len(summands) <= total.size or any(array.shape != total.shape for array in summands):
        return None
    matrix = np.stack([array.ravel() for array in summands], axis=1)
    if not np.isfinite(matrix).all() or not np.isfinite(total).all():
        return None
    found = np.round(np.linalg.lstsq(matrix, total.ravel(), rcond=None)[0])
    return found.astype(int).tolist() if close(matrix @ found, total.ravel()) else None

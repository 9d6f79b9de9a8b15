"""Compares arrays by name, of two programs or from files, and describes what differs.

Nothing is known here about the terms that were added, so errors are relative to the largest absolute value of the
tensor on either side. Differences that follow a pattern are named: each pattern is the trace of one kind of mistake in
a parallel program.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from parallel_dl.equivalence.compare import patterns
from parallel_dl.errors import cut, number_of

BOUNDS = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2}
_MOST_SLICES = 64  # ranks that slices out of place are looked for
_ONE = 1e-5  # by which a factor may differ from a whole number


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """One name in A or B: whether it is equal, and if not, what the difference looks like."""

    name: str
    equal: bool
    error: float
    """the largest |a - b|, divided by the largest |a| or |b| of the tensor; infinite if they cannot be subtracted"""
    bound: float
    factor: float | None = None
    """b / a, where it is the same for all values"""
    cause: str = ""
    """a description; empty for equal tensors"""
    rounds: str | None = None
    """the type below float64, if rounding that grew in training may explain the difference; else None"""


@dataclasses.dataclass(frozen=True)
class ArraysComparison:
    """All tensors of A and B, in the order of their names (numbers by value)."""

    tensors: list[TensorDifference]

    @property
    def equal(self) -> bool:
        """Whether all of them are."""
        return all(tensor.equal for tensor in self.tensors)

    @property
    def different(self) -> list[TensorDifference]:
        """The tensors that differ, in order."""
        return [tensor for tensor in self.tensors if not tensor.equal]

    @property
    def worst(self) -> TensorDifference | None:
        """The tensor with the largest error, different ones before equal ones; None without tensors."""
        return max(self.tensors, key=lambda tensor: (not tensor.equal, tensor.error), default=None)

    @property
    def message(self) -> str:
        """One sentence."""
        worst = self.worst
        if worst is None:
            return "equal: there are no tensors"
        of_worst = f"worst is {cut(worst.name)}, {worst.error:.2e} (bound {worst.bound:.0e})"
        if self.equal:
            return f"equal: {number_of(len(self.tensors), 'tensor')}; {of_worst}"
        return f"DIFFERENT: {len(self.different)} of {number_of(len(self.tensors), 'tensor')}; {of_worst}"


def compare_arrays(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], bound: float | None = None, exact: bool = False
) -> ArraysComparison:
    """Compares two sets of arrays by name.

    Tensors are equal if their names, shapes and types are, all values are finite, and the largest |a - b| is at most
    `bound` times the largest |a| or |b|; by default, `bound` is 1e-10 in float64, 1e-5 in float32 and 1e-2 in float16.
    With `exact`, and for integers, values must be equal.
    """
    names = sorted(a.keys() | b.keys(), key=by_number)
    return ArraysComparison([_compare(name, a.get(name), b.get(name), bound, exact) for name in names])


def by_number(name: str) -> list[Any]:
    """The key that sorts "2.weight" before "10.weight"."""
    parts = re.split(r"([0-9]+)", name)  # every other one is a number, of any number of digits
    numbers = [part.lstrip("0") for part in parts]
    return [(0, len(number), number) if place % 2 else (1, 0, parts[place]) for place, number in enumerate(numbers)]


def _compare(
    name: str, a: np.ndarray | None, b: np.ndarray | None, bound: float | None, exact: bool
) -> TensorDifference:
    if a is None or b is None:
        return TensorDifference(name, False, math.inf, 0.0, cause=f"only in {'A' if b is None else 'B'}")
    floats = a.dtype.kind == b.dtype.kind == "f"
    limit = 0.0 if exact or not floats else BOUNDS.get(str(b.dtype), 1e-10) if bound is None else bound
    # the longest float has all integers of 64 bits, too
    x, y = (array.astype(np.longdouble if array.dtype.itemsize == 8 and not floats else float) for array in (a, b))
    if a.shape != b.shape:
        axes = patterns.exchanged_axes(x, y, limit)
        turned = "" if axes is None else f": transposed, B is A with its axes in the order {axes}"
        return TensorDifference(name, False, math.inf, limit, cause=f"shape {a.shape} in A, {b.shape} in B{turned}")
    if not (np.isfinite(a) & np.isfinite(b)).all():
        where = " and ".join(side for side, array in (("A", a), ("B", b)) if not np.isfinite(array).all())
        return TensorDifference(name, False, math.inf, limit, cause=f"not all values are finite in {where}")
    error = patterns.error(x, y)
    if a.dtype != b.dtype:
        return TensorDifference(name, False, error, limit, cause=f"{a.dtype} in A, {b.dtype} in B")
    if error <= limit if limit else np.array_equal(a, b):
        return TensorDifference(name, True, error, limit)
    factor, cause = _looks_like(x, y, max(limit, patterns.SAME))
    rounds = str(a.dtype) if a.dtype.itemsize < 8 and floats and cause.startswith("values") else None
    return TensorDifference(name, False, error, limit, factor, cause, rounds)


def _looks_like(a: np.ndarray, b: np.ndarray, tolerance: float) -> tuple[float | None, str]:
    """The factor between them, if there is one, and the pattern in words."""
    factor = patterns.factor(a, b, tolerance) if np.count_nonzero(a) > 1 else None  # one value has no ratio of its own
    if factor is not None:
        return factor, _of_factor(factor)
    axes = patterns.exchanged_axes(a, b, tolerance)
    if axes is not None:
        return None, f"transposed: B is A with its axes in the order {axes}"
    found = patterns.order_of_slices(a, b, range(2, _MOST_SLICES + 1), tolerance=tolerance)
    if found is not None:
        axis, order = found
        said = ", ".join(map(str, order))
        return None, f"slices out of place: B has A's {len(order)} slices along axis {axis} in the order {said}"
    return None, "values"


def _of_factor(factor: float) -> str:
    if abs(factor - 1) < _ONE:
        return "values: rounding, perhaps"
    if factor == 0:
        return "B is zero"
    line = f"B is {factor:.6g} x A"
    times, share = patterns.whole(factor, _ONE), patterns.whole(1 / factor, _ONE)
    if times == -1:
        return f"{line}: the sign"
    if times == 2:
        return f"{line}: counted twice"
    if times is not None and times > 2:
        return f"{line}: a sum over {number_of(times, 'rank')} too many, or a division missing"
    if share is not None and share > 1:
        return f"{line}: one share of {share}, or a division by {share} too many"
    return line

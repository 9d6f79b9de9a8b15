"""Compares arrays by name, from files or from two programs: equal, or what is different and what that looks like.

Nothing is known here of what was added up, so the scale of an error is the largest absolute value of the tensor, in
either of the two. A difference that is a constant factor, a transposition or slices out of place is named as such:
each is the trace of one kind of mistake in a parallel program.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parallel_dl import checkpoint
from parallel_dl.errors import InputError, cut, named, number_of, shown, unknown_name
from parallel_dl.files import as_written, read_table, require_regular

Arrays = dict[str, np.ndarray]

BOUNDS = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2}
_MOST_AXES = 64  # of an array of NumPy
_MOST_SLICES = 64  # ranks that slices out of place are looked for


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """One name in A or B: whether it is equal, and if not, what the difference looks like."""

    name: str
    equal: bool
    error: float
    """the largest |a - b|, over the largest |a| or |b| of the tensor; infinite where they cannot be subtracted"""
    bound: float
    factor: float | None = None
    """b / a, where it is the same for all values"""
    cause: str = ""
    """in words; empty for tensors that are equal"""
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
        """Those that are not, in order."""
        return [tensor for tensor in self.tensors if not tensor.equal]

    @property
    def worst(self) -> TensorDifference | None:
        """The one with the largest error, different ones before equal ones; None without tensors."""
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

    A tensor is equal when names, shapes and types are, all values are finite, and the largest |a - b| is at most
    `bound` times the largest |a| or |b| in it: 1e-10 in float64, 1e-5 in float32 and 1e-2 in float16 unless given.
    `exact` demands equal values; so do integers.
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
    if a.shape != b.shape:
        cause = f"shape {a.shape} in A, {b.shape} in B"
        for axes in _orders(a, b):
            if np.array_equal(a.transpose(axes), b):
                cause += f": transposed, B is A with its axes in the order {axes}"
                break
        return TensorDifference(name, False, math.inf, limit, cause=cause)
    if not (np.isfinite(a) & np.isfinite(b)).all():
        where = " and ".join(side for side, array in (("A", a), ("B", b)) if not np.isfinite(array).all())
        return TensorDifference(name, False, math.inf, limit, cause=f"not all values are finite in {where}")
    # the longest float has all integers of 64 bits, too
    x, y = (array.astype(np.longdouble if array.dtype.itemsize == 8 and not floats else float) for array in (a, b))
    error = _error(x, y)
    if a.dtype != b.dtype:
        return TensorDifference(name, False, error, limit, cause=f"{a.dtype} in A, {b.dtype} in B")
    if error <= limit if limit else np.array_equal(a, b):
        return TensorDifference(name, True, error, limit)
    tolerance = max(limit, 1e-6)
    factor = ratio_of(x, y, tolerance)
    cause = _of_factor(factor) if factor is not None else _out_of_place(x, y, tolerance) or ""
    rounds = str(a.dtype) if a.dtype.itemsize < 8 and floats and (not cause or cause.startswith("values")) else None
    return TensorDifference(name, False, error, limit, factor, cause or "values", rounds)


def _error(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a - b| over the largest |a| or |b|; 0 for tensors without values, or of zeros."""
    scale = max((float(np.abs(array).max()) for array in (a, b) if array.size), default=0.0)
    return float(np.abs(a - b).max()) / scale if scale else 0.0


# -- what a difference looks like ----------------------------------------------------------------------------------
def ratio_of(a: np.ndarray, b: np.ndarray, tolerance: float) -> float | None:
    """The number c for which b = c a, up to `tolerance` of the largest value; None when there is none.

    A single value, or zeros, have no ratio that would say something.
    """
    if a.shape != b.shape or np.count_nonzero(a) < 2:
        return None
    largest = np.abs(a).max()
    scaled = a / largest  # its squares neither overflow nor vanish
    c = np.vdot(scaled, b / largest) / np.vdot(scaled, scaled)
    return float(c) if _error(c * a, b) <= tolerance else None


def _of_factor(factor: float) -> str:
    whole, share = round(factor), round(1 / factor) if factor else 0
    if abs(factor - 1) < 1e-5:
        return "values: rounding, perhaps"
    line = f"B is {factor:.6g} x A"
    if factor == 0:
        return "B is zero"
    if abs(factor + 1) < 1e-5:
        return f"{line}: the sign"
    if whole == 2 and abs(factor - whole) < 1e-5 * whole:
        return f"{line}: counted twice"
    if whole > 2 and abs(factor - whole) < 1e-5 * whole:
        return f"{line}: a sum over {whole} ranks too many, or a division missing"
    if share > 1 and abs(factor * share - 1) < 1e-5:
        return f"{line}: one share of {share}, or a division by {share} too many"
    return line


def _out_of_place(a: np.ndarray, b: np.ndarray, tolerance: float) -> str | None:
    """A transposition, or equal slices along an axis in another order, as when ranks are mixed up."""
    for axes in _orders(a, b):
        if _error(a.transpose(axes), b) <= tolerance:
            return f"transposed: B is A with its axes in the order {axes}"
    for axis, length in enumerate(a.shape):
        others = tuple(other for other in range(a.ndim) if other != axis)
        profiles = [np.abs(array).sum(axis=others) for array in (a, b)]  # a number each: the search is cheap
        for parts in range(2, min(length, _MOST_SLICES) + 1):
            if length % parts == 0:
                order = _order_of_slices(np.split(profiles[0], parts), np.split(profiles[1], parts), tolerance)
                if order is None:
                    continue
                pieces = np.split(a, parts, axis)
                if _error(np.concatenate([pieces[number] for number in order], axis), b) <= tolerance:
                    said = ", ".join(map(str, order))
                    return f"slices out of place: B has A's {parts} slices along axis {axis} in the order {said}"
    return None


def _orders(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Orders of a's axes that would give b's shape, but for the order it has."""
    if 2 <= a.ndim <= 4 and a.ndim == b.ndim:
        for axes in itertools.permutations(range(a.ndim)):
            if axes != tuple(range(a.ndim)) and tuple(a.shape[axis] for axis in axes) == b.shape:
                yield axes


def _order_of_slices(a: Sequence[np.ndarray], b: Sequence[np.ndarray], tolerance: float) -> list[int] | None:
    """Which slice of a stands at each place in b; None when b has others."""
    left, order = list(range(len(a))), []
    for piece in b:
        found = next((number for number in left if _error(a[number], piece) <= tolerance), None)
        if found is None:
            return None
        left.remove(found)
        order.append(found)
    return order


# -- files ---------------------------------------------------------------------------------------------------------
Placement = Mapping[str, int | str]


def read_placement(path: str) -> Placement:
    """Name or pattern -> axis, "sum" or "replicated", from a TOML file, or a JSON one (.json).

    InputError for a file that is missing or malformed, and for other values. Nested tables are names with dots.
    """
    try:
        said = read_table(path, "a placement, name to axis, in TOML or JSON")
    except InputError as error:
        raise InputError(f"--placement {error}") from None
    placement = dict(_flat(said))
    for name, how in placement.items():
        if isinstance(how, bool) or not (isinstance(how, int) or how in ("sum", "replicated")):
            raise InputError(
                f"--placement {named(path)}: {cut(name)} = {as_written(how)}; valid are an axis, 'sum' and 'replicated'"
            )
        if isinstance(how, int) and not -_MOST_AXES <= how < _MOST_AXES:
            raise InputError(f"--placement {named(path)}: {cut(name)} = {how}: arrays have at most {_MOST_AXES} axes")
    return placement


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def files_of(text: str) -> list[Path]:
    """The files that a side names: a file, several with commas between, or a folder of safetensors files."""
    if not text:
        raise InputError("'': is empty; give a safetensors file, or a folder of them")
    paths = [Path(text)] if os.path.exists(text) else [Path(part) for part in text.split(",")]
    found: list[Path] = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(path.glob("*.safetensors"), key=lambda file: by_number(file.name))
            if not inside:
                raise InputError(f"{named(path)}: has no files *.safetensors")
            found += inside
        else:
            require_regular(path, "a safetensors file, or a folder of them")
            found.append(path)
    return found


def read_side(text: str, placement: Placement | None = None) -> tuple[Arrays, dict[str, str]]:
    """The whole arrays that the files have together, by name; and by name what keeps shards from being put together.

    `text` is as in `files_of`; the files are those of the ranks, in their order, and `placement` says what each has of
    a name: see `read_placement`. A name without a place there is equal in all files that have it. InputError for
    files that cannot be read, for different values of such a name, and for an axis that they do not have.
    """
    files = files_of(text)
    if len(files) == 1:
        return checkpoint.load(files[0]), {}
    shards: dict[str, list[np.ndarray]] = {}
    for path in files:
        for name, array in checkpoint.load(path).items():
            shards.setdefault(name, []).append(array)
    whole, faults = {}, {}
    for name, pieces in shards.items():
        how = place_of(name, placement or {})
        alike = all(np.array_equal(pieces[0], piece) for piece in pieces[1:])
        if how is None and not alike:
            raise InputError(
                f"{named(text)}: {cut(name)} is not the same in {len(pieces)} files; "
                "give its axis, or 'sum', in --placement"
            )
        if how == "replicated" and not alike:
            number = next(n for n, piece in enumerate(pieces) if not np.array_equal(pieces[0], piece))
            faults[name] = f"replicas differ: file {number} of {len(pieces)} has not what file 0 has"
        whole[name] = _together(name, pieces, how)
    return whole, faults


def place_of(name: str, placement: Placement) -> int | str | None:
    """Of the name itself, else of the first pattern that fits it; None without one."""
    if name in placement:
        return placement[name]
    return next((how for pattern, how in placement.items() if fnmatch.fnmatchcase(name, pattern)), None)


def _together(name: str, pieces: Sequence[np.ndarray], how: int | str | None) -> np.ndarray:
    try:
        if isinstance(how, int):
            return np.concatenate(pieces, how)
        if how == "sum":
            return np.sum(pieces, axis=0, dtype=pieces[0].dtype)
    except ValueError as error:
        shapes = ", ".join(str(piece.shape) for piece in pieces)
        said = f"{cut(name)} = {shown(how)} does not fit the shapes {cut(shapes)}: {error}"
        raise InputError(f"--placement: {said}") from None
    return pieces[0]


def compare_files(
    a: str, b: str, bound: float | None = None, exact: bool = False, placement: Placement | None = None
) -> ArraysComparison:
    """`compare_arrays` of what is in the files of both sides, after `read_side`."""
    (ours, faults), (theirs, others) = read_side(a, placement), read_side(b, placement)
    names = ours.keys() | theirs.keys()
    for place in placement or {}:
        if place not in names and not set(place) & set("*?["):  # a pattern may be for other files
            raise InputError(f"--placement: {unknown_name('tensor', place, sorted(names))}")
    found = compare_arrays(ours, theirs, bound, exact)
    said = {name: f"in A {fault}" for name, fault in faults.items()}
    said |= {name: f"in B {fault}" for name, fault in others.items()}
    tensors = [
        dataclasses.replace(tensor, equal=False, error=math.inf, factor=None, cause=said[tensor.name])
        if tensor.name in said
        else tensor
        for tensor in found.tensors
    ]
    return ArraysComparison(tensors)

"""Compares two sides of safetensors files by name; a side may be sharded over the files of several ranks."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parallel_dl import checkpoint
from parallel_dl.equivalence.compare.arrays import ArraysComparison, by_number, compare_arrays
from parallel_dl.errors import InputError, cut, named, shown, unknown_name
from parallel_dl.files import as_written, read_table, require_regular

Arrays = dict[str, np.ndarray]
_MOST_AXES = 64  # of an array of NumPy

Placement = Mapping[str, int | str]


def read_placement(path: str) -> Placement:
    """Name or pattern -> axis, "sum" or "replicated", from a TOML file, or a JSON one (.json).

    InputError for a file that is missing or malformed, and for invalid values. Nested tables are names with dots.
    """
    try:
        said = read_table(path, "a placement, name to axis, in TOML or JSON")
    except InputError as error:
        raise InputError(f"`placement` {error.marked}") from None
    placement = dict(_flat(said))
    for name, how in placement.items():
        if isinstance(how, bool) or not (isinstance(how, int) or how in ("sum", "replicated")):
            raise InputError(
                f"`placement` {named(path)}: {cut(name)} = {as_written(how)}; expected an axis, 'sum' or 'replicated'"
            )
        if isinstance(how, int) and not -_MOST_AXES <= how < _MOST_AXES:
            raise InputError(f"`placement` {named(path)}: {cut(name)} = {how}: arrays have at most {_MOST_AXES} axes")
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
                "give its axis, or 'sum', in `placement`"
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
        raise InputError(f"`placement`: {said}") from None
    return pieces[0]


def compare_files(
    a: str, b: str, bound: float | None = None, exact: bool = False, placement: Placement | None = None
) -> ArraysComparison:
    """`compare_arrays` of what is in the files of both sides, after `read_side`."""
    (ours, faults), (theirs, others) = read_side(a, placement), read_side(b, placement)
    names = ours.keys() | theirs.keys()
    for place in placement or {}:
        if place not in names and not set(place) & set("*?["):  # a pattern may be for other files
            raise InputError(f"`placement`: {unknown_name('tensor', place, sorted(names))}")
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

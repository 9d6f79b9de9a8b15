"""Whole arrays from what the ranks have of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from parallel_dl.equivalence.scripts.files import BEFORE, GRADIENT, LOCAL, WATCHED, WEIGHT, Part, Update
from parallel_dl.errors import number_of


@dataclasses.dataclass
class Whole:
    """A whole array, and the ranks whose copy of it is another one."""

    values: np.ndarray
    others: dict[int, float] = dataclasses.field(default_factory=dict)
    """rank -> how far its copy is from the first rank's, relative to the largest value"""
    lacking: tuple[int, ...] = ()
    """ranks without it, though they have the parameter"""


def whole(updates: Sequence[Update], kind: str, name: str) -> Whole | None:
    """One array of an update, from the ranks' parts; None if none has it. ValueError if they do not fit together."""
    key = f"{kind}/{name}"
    held = [(rank, one.arrays[key], one.parts[name]) for rank, one in enumerate(updates) if key in one.arrays]
    if not held:
        return None
    lacking = tuple(rank for rank, one in enumerate(updates) if name in one.parts and key not in one.arrays)
    first = held[0][2]
    if first.state == "partial":
        return Whole(np.sum([array for _, array, _ in held], axis=0), {}, lacking)
    if first.state == "shard":
        return Whole(_joined([array for _, array, _ in held], first.axis), {}, lacking)
    if not any(part.piece for _, _, part in held):
        return _of_copies(held, lacking)
    return Whole(*_of_shards(held, first.whole_shape), lacking)


def _joined(shards: Sequence[np.ndarray], axis: int) -> np.ndarray:
    try:
        return np.concatenate(shards, axis=axis)
    except ValueError:
        shapes = ", ".join(str(shard.shape) for shard in shards)
        raise ValueError(f"the ranks' shards do not fit together along axis {axis}: shapes {shapes}") from None


def _of_copies(held: Sequence[tuple[int, np.ndarray, Part]], lacking: tuple[int, ...]) -> Whole:
    _, values, _ = held[0]
    others = {}
    for rank, array, _ in held[1:]:
        if array.shape != values.shape:
            others[rank] = np.inf
        elif not np.array_equal(array, values, equal_nan=array.dtype.kind == "f"):
            others[rank] = distance(values, array)
    return Whole(values, others, lacking)


def _of_shards(
    held: Sequence[tuple[int, np.ndarray, Part]], shape: tuple[int, ...]
) -> tuple[np.ndarray, dict[int, float]]:
    values = np.zeros(shape, held[0][1].dtype)
    filled = np.zeros(shape, bool)
    others = {}
    for rank, array, part in held:
        index = tuple(slice(*piece) for piece in part.piece)
        if filled[index].all() and filled[index].size and not np.array_equal(values[index], array):
            others[rank] = distance(values[index], array)
        values[index], filled[index] = array, True
    if not filled.all():
        left = f"{int((~filled).sum()):,} of {number_of(filled.size, 'value')}"
        raise ValueError(f"the ranks' shards leave {left} out")
    return values, others


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a - b| over the largest |a| or |b|, of what is finite; infinite if what is not is another one."""
    if a.shape != b.shape:
        return float(np.inf)
    if a.dtype.kind in "biu" and b.dtype.kind in "biu":
        if np.array_equal(a, b):
            return 0.0
        a, b = a.astype(np.longdouble), b.astype(np.longdouble)  # which has all integers of 64 bits
    broken = ~(np.isfinite(a) & np.isfinite(b))
    if broken.any():
        if not np.array_equal(a[broken], b[broken], equal_nan=True):
            return float(np.inf)
        a, b = a[~broken], b[~broken]
    both = max(largest(a), largest(b))
    return float(np.abs(a - b).max()) / both if both else 0.0


def largest(values: np.ndarray) -> float:
    """The largest magnitude of what is finite; 0 if nothing is."""
    return float(np.abs(values).max(initial=0, where=np.isfinite(values)))


def names_of(updates: Sequence[Update], kinds: Sequence[str] = (BEFORE, LOCAL, GRADIENT, WEIGHT, WATCHED)) -> list[str]:
    """The names of all arrays of these kinds, in the order of the ranks."""
    return list(dict.fromkeys(name for one in updates for kind in kinds for name in one.of_kind(kind)))

"""Which ranks share the samples of a batch among them: all of them, or where the network is split, the replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from parallel_dl.equivalence.scripts.files import WATCHED, Update


class Batch(NamedTuple):
    """The samples that went into one update."""

    ranks: tuple[int, ...]
    """that share them"""
    samples: Counter[int]

    @property
    def size(self) -> int:
        """Number of samples."""
        return sum(self.samples.values())


def replicas(updates: Sequence[Update]) -> list[tuple[int, ...]]:
    """The ranks that hold the same parts of the same parameters, for each choice of parts."""
    found: dict[tuple, list[int]] = {}
    for rank, one in enumerate(updates):
        held = tuple(sorted((name, one.parts[name].piece) for name in _parameters(one)))
        found.setdefault(held, []).append(rank)
    return [tuple(ranks) for ranks in found.values()]


def batches(serial: Sequence[Update], updates: Sequence[Update]) -> tuple[Batch, Batch]:
    """The batch of the serial run, and that of a run on several ranks.

    Samples enter a network where its first parameter is. Whether the ranks with different parts of the others have the
    same samples depends on how it is split; what agrees with the serial run is taken.
    """
    pairs = [(wanted, found) for wanted in _possible(serial) for found in _possible(updates)]
    for agrees in (lambda a, b: a.samples == b.samples, lambda a, b: a.size == b.size):
        for wanted, found in pairs:
            if agrees(wanted, found):
                return wanted, found
    return pairs[0]


def _possible(updates: Sequence[Update]) -> list[Batch]:
    first = next((name for one in updates for name in _parameters(one)), None)
    if first is None:
        return [_batch(updates, tuple(range(len(updates))))]
    holders = [rank for rank, one in enumerate(updates) if first in one.parts]
    piece = updates[holders[0]].parts[first].piece
    alike = tuple(rank for rank in holders if updates[rank].parts[first].piece == piece)
    same = next(ranks for ranks in replicas(updates) if holders[0] in ranks)
    return [_batch(updates, ranks) for ranks in dict.fromkeys((alike, same))]


def _parameters(update: Update) -> list[str]:
    return [name for name in update.parts if f"{WATCHED}/{name}" not in update.arrays]


def _batch(updates: Sequence[Update], ranks: tuple[int, ...]) -> Batch:
    samples = Counter[int]()
    for rank in ranks:
        samples.update(updates[rank].samples)
    return Batch(ranks, samples)

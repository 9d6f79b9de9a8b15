"""What is likely the matter when a gradient is not the serial one: relations between the ranks' gradients are tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from parallel_dl.equivalence.scripts.files import GRADIENT, LOCAL, Update
from parallel_dl.errors import number_of
from parallel_dl.watchdog.picture import named

Vector = np.ndarray


class Gradients:
    """The gradients of one update as flat vectors of the parameters that all ranks have as a whole."""

    def __init__(
        self, serial: Update, ranks: Sequence[Update], before: Update | None, after: Sequence[Update] = ()
    ) -> None:
        """`before` is the serial update before this one, `after` the ranks' next one, where there is one."""
        self.serial_update, self.updates, self.after = serial, list(ranks), list(after)
        have = [set(one.of_kind(GRADIENT)) for one in (serial, *ranks)]
        self.names = [name for name in serial.of_kind(GRADIENT) if all(name in one for one in have)]
        self.names = [n for n in self.names if all(not one.parts[n].piece for one in ranks)]
        self.serial = self._flat(serial, GRADIENT)
        self.ranks = [self._flat(one, GRADIENT) for one in ranks]
        self.local = [self._flat(one, LOCAL) for one in ranks]
        had = before.of_kind(GRADIENT) if before is not None else {}
        self.before = self._flat(before, GRADIENT) if before is not None and set(self.names) <= set(had) else None
        dtype = self.serial.dtype
        self.tolerance = 1e-4 if dtype.itemsize < 8 else 1e-7

    def _flat(self, update: Update, kind: str) -> Vector:
        arrays = update.of_kind(kind)
        found = [np.ravel(arrays.get(name, np.zeros(update.arrays[f"{GRADIENT}/{name}"].shape))) for name in self.names]
        return np.concatenate(found) if found else np.zeros(0)

    def same(self, a: Vector, b: Vector) -> bool:
        """Whether two of them are equal, up to rounding, and not zero."""
        largest = max(float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0)))
        return 0 < largest < np.inf and float(np.abs(a - b).max()) <= self.tolerance * largest


def cause_of_samples(serial: Update, ranks: Sequence[Update]) -> str:
    """What the ranks have computed that the serial run has not, or more than once; empty if it is the same."""
    wanted, found = Counter(serial.samples), Counter[int]()
    for one in ranks:
        found.update(one.samples)
    if not wanted or not found or wanted == found:
        return ""
    size = len(ranks)
    if size > 1 and all(Counter(one.samples) == wanted for one in ranks):
        return "every rank computes all samples of the batch: the loader lacks rank= and ranks="
    if sum(found.values()) != sum(wanted.values()):
        return ""
    strange = {rank: sum((Counter(one.samples) - wanted).values()) for rank, one in enumerate(ranks)}
    odd = [rank for rank, number in strange.items() if number]
    if len(odd) == size and sum(strange.values()) > sum(wanted.values()) / 2:
        return "the ranks compute other samples than the serial run: another order (the seed of the loader?)"
    known = set(serial.evaluated).union(*(one.evaluated for one in ranks))
    of_odd = [sample for rank in odd for sample in (Counter(ranks[rank].samples) - wanted)]
    where = ", which are those of the evaluation" if of_odd and known.issuperset(of_odd) else ""
    number = number_of(sum(strange.values()), "sample")
    return f"{named(odd)} computes {number} that the serial run does not have in this update{where}"


def global_batches(serial: Update, ranks: Sequence[Update]) -> tuple[int, int]:
    """Number of samples that went into an update: serially, and on all ranks."""
    return len(serial.samples), sum(len(one.samples) for one in ranks)


def cause_of_gradient(g: Gradients) -> str:
    """The likely cause; empty if no relation fits."""
    lacking = _lacking(g)
    if lacking:
        return lacking
    if not g.names:
        return ""
    alike = all(g.same(one, g.ranks[0]) or not np.abs(one - g.ranks[0]).any() for one in g.ranks)
    return (_of_equal(g) if alike else _of_different(g)) or _of_rank(g)


def _lacking(g: Gradients) -> str:
    """Ranks that have no gradient for a parameter that others have one for."""
    for name in g.serial_update.of_kind(GRADIENT):
        ranks = [r for r, one in enumerate(g.updates) if name in one.parts and f"{LOCAL}/{name}" not in one.arrays]
        if ranks and len(ranks) < len(g.updates):
            have = "has" if len(ranks) == 1 else "have"
            return f"{named(ranks)} {have} no gradient of {name}: is it frozen there, or not used?"
    return ""


def _shares(g: Gradients) -> list[int]:
    return [len(one.samples) for one in g.updates]


def _weighted(g: Gradients) -> Vector | None:
    """The mean of the ranks' gradients, each weighted by its samples."""
    shares = _shares(g)
    total = sum(shares)
    return sum(n / total * one for n, one in zip(shares, g.local)) if total else None  # type: ignore[return-value]


def _of_different(g: Gradients) -> str:
    """The ranks have different gradients when they update."""
    size = len(g.ranks)
    total = np.sum(g.ranks, axis=0)
    after = any(one.calls[1] > 0 for one in g.after) and not any(one.calls[0] for one in g.updates)
    when = "they are summed after the update, not before" if after else "no all-reduce before the update"
    if g.same(total, g.serial):
        return f"each rank updates with its own gradient, whose sum is the serial one: {when}"
    weighted = _weighted(g)
    if g.same(total / size, g.serial) or (weighted is not None and g.same(weighted, g.serial)):
        return f"each rank updates with the gradient of its own mean: {when}"
    return ""


def _of_equal(g: Gradients) -> str:
    """All ranks update with the same gradient."""
    size, found = len(g.ranks), g.ranks[0]
    shares, weighted = _shares(g), _weighted(g)
    total = np.sum(g.local, axis=0)
    unequal = len(set(shares)) > 1
    if weighted is not None and g.same(weighted, g.serial):
        if g.same(found, total) and (unequal or not g.same(total, g.serial)):
            by = "the shares are unequal, so pass total=" if unequal else f"divide by {size}, or pass total="
            return f"the means over each rank's own samples are summed ({_listed(shares)} samples): {by}"
        if g.same(found, total / size) and unequal:
            return (
                f"the means over each rank's own samples are averaged, but the shares are unequal ({_listed(shares)} "
                "samples): each has to count by its samples"
            )
    if g.before is not None:
        for number in range(1, size + 1):
            if g.same(found - g.serial, number * g.before):
                return "the gradients of the update before are still there, and are summed again: zero_grad is missing"
    for number in (size, size * size):
        if g.same(found, number * g.serial):
            return f"{number} times the serial gradient: a factor 1/{number} is missing"
        if g.same(found * number, g.serial):
            return f"1/{number} of the serial gradient: it is divided by the number of ranks once too often"
    for rank in range(size):
        if size > 1 and g.same(found, g.local[rank]) and not g.same(found, g.serial):
            return f"all ranks update with the gradient of rank {rank} alone"
    for rank in range(size):
        if size > 1 and g.same(found, total - g.local[rank]):
            return f"the gradient of rank {rank} is missing in the sum"
    return ""


def _of_rank(g: Gradients) -> str:
    """One rank alone is different."""
    wrong = [rank for rank, one in enumerate(g.ranks) if not g.same(one, g.serial)]
    if 0 < len(wrong) < len(g.ranks):
        return f"only {named(wrong)} {'has' if len(wrong) == 1 else 'have'} another gradient"
    return ""


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])

"""What is likely the matter when a gradient is not the serial one: relations between the ranks' gradients are tried."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from parallel_dl.equivalence.scripts.files import GRADIENT, LOCAL, Update
from parallel_dl.equivalence.scripts.shares import batches, replicas
from parallel_dl.equivalence.scripts.whole import whole
from parallel_dl.errors import number_of
from parallel_dl.watchdog.picture import named

Vector = np.ndarray


class Gradients:
    """The gradients of one update as flat vectors, on ranks that hold the same parts of the same parameters."""

    def __init__(
        self,
        serial: Sequence[Update],
        ranks: Mapping[int, Update],
        before: Sequence[Update] = (),
        after: Sequence[Update] = (),
    ) -> None:
        """`before` is the serial update before this one, `after` the ranks' next one; empty where there is none."""
        self.numbers, self.updates, self.after = list(ranks), list(ranks.values()), after
        first = self.updates[0]
        self.pieces = {name: tuple(slice(*piece) for piece in part.piece) for name, part in first.parts.items()}
        held = self._held(serial, first.of_kind(GRADIENT))
        shapes = [{name: array.shape for name, array in one.of_kind(GRADIENT).items()} for one in self.updates]
        self.names = [n for n, array in held.items() if all(one.get(n) == array.shape for one in shapes)]
        self.serial = _flat([held[name] for name in self.names])
        self.ranks = [self._of(one, GRADIENT) for one in self.updates]
        self.local = [self._of(one, LOCAL) for one in self.updates]
        earlier = self._held(before, self.names)
        self.before = _flat([earlier[name] for name in self.names]) if len(earlier) == len(self.names) else None
        self.tolerance = 1e-4 if self.serial.dtype.itemsize < 8 else 1e-7

    def _of(self, update: Update, kind: str) -> Vector:
        arrays = update.of_kind(kind)
        shapes = {name: update.arrays[f"{GRADIENT}/{name}"].shape for name in self.names}
        return _flat([arrays.get(name, np.zeros(shapes[name])) for name in self.names])

    def _held(self, serial: Sequence[Update], names: Iterable[str]) -> dict[str, np.ndarray]:
        """What these ranks hold of the serial gradients."""
        found = {}
        for name in names:
            with contextlib.suppress(ValueError):  # shards that do not fit together
                if (one := whole(serial, GRADIENT, name)) is not None:
                    found[name] = one.values[self.pieces[name]]
        return found

    def same(self, a: Vector, b: Vector) -> bool:
        """Whether two of them are equal, up to rounding, and not zero."""
        largest = max(float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0)))
        return 0 < largest < np.inf and float(np.abs(a - b).max()) <= self.tolerance * largest


def _flat(arrays: Sequence[np.ndarray]) -> Vector:
    return np.concatenate([np.ravel(array) for array in arrays]) if arrays else np.zeros(0)


def cause_of_samples(serial: Sequence[Update], updates: Sequence[Update]) -> str:
    """What the ranks have computed that the serial run has not, or more than once; empty if it is the same."""
    (_, wanted), (numbers, found) = batches(serial, updates)
    if not wanted or not found or wanted == found:
        return ""
    ranks = {rank: Counter(updates[rank].samples) for rank in numbers}
    if len(ranks) > 1 and all(one == wanted for one in ranks.values()):
        return "every rank computes all samples of the batch: the loader lacks rank= and ranks="
    if sum(found.values()) != sum(wanted.values()):
        return ""
    strange = {rank: one - wanted for rank, one in ranks.items() if one - wanted}
    number = sum(sum(samples.values()) for samples in strange.values())
    if not strange:
        return "some samples of the batch are computed more than once, and others not at all"
    having = [rank for rank, one in ranks.items() if one]
    if len(strange) == len(having) and number > sum(wanted.values()) / 2:
        return "the ranks compute other samples than the serial run: another order (the seed of the loader?)"
    known = {sample for one in (*serial, *updates) for sample in one.evaluated}
    where = ", which are those of the evaluation" if all(known.issuperset(one) for one in strange.values()) else ""
    computes = "computes" if len(strange) == 1 else "compute"
    return f"{named(strange)} {computes} {number_of(number, 'sample')} that the serial run does not have here{where}"


def cause_of_gradient(
    serial: Sequence[Update], ranks: Sequence[Update], before: Sequence[Update] = (), after: Sequence[Update] = ()
) -> str:
    """The likely cause; empty if no relation fits."""
    lacking = _lacking(ranks)
    if lacking:
        return lacking
    wrong: list[int] = []
    for numbers in replicas(ranks):
        g = Gradients(serial, {number: ranks[number] for number in numbers}, before, after)
        if not g.names:
            continue
        alike = all(g.same(one, g.ranks[0]) or not np.abs(one - g.ranks[0]).any() for one in g.ranks)
        if cause := _of_equal(g) if alike else _of_different(g):
            return cause
        wrong += [number for number, one in zip(numbers, g.ranks) if not g.same(one, g.serial)]
    if 0 < len(wrong) < len(ranks):
        return f"only {named(wrong)} {'has' if len(wrong) == 1 else 'have'} another gradient"
    return ""


def _lacking(updates: Sequence[Update]) -> str:
    """Ranks that have no gradient for a parameter that others have one for."""
    for name in dict.fromkeys(name for one in updates for name in one.of_kind(LOCAL)):
        holders = [rank for rank, one in enumerate(updates) if name in one.parts]
        ranks = [rank for rank in holders if f"{LOCAL}/{name}" not in updates[rank].arrays]
        if ranks:
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
    if g.before is not None:  # the updates before were right, so it is nothing that each of them would have
        for number in range(1, size + 1):
            if g.same(found - g.serial, number * g.before):
                return "the gradients of the update before are still there, and are summed again: zero_grad is missing"
    if weighted is not None and g.same(weighted, g.serial):
        if g.same(found, total) and (unequal or not g.same(total, g.serial)):
            by = "the shares are unequal, so pass total=" if unequal else f"divide by {size}, or pass total="
            return f"the means over each rank's own samples are summed ({_listed(shares)} samples): {by}"
        if g.same(found, total / size) and unequal:
            return (
                f"the means over each rank's own samples are averaged, but the shares are unequal ({_listed(shares)} "
                "samples): each has to count by its samples"
            )
    for number in (size, size * size) if size > 1 else ():
        if g.same(found, number * g.serial):
            return f"{number} times the serial gradient: a factor 1/{number} is missing"
        if g.same(found * number, g.serial):
            return f"1/{number} of the serial gradient: it is divided by the number of ranks once too often"
    for rank in range(size):
        if size > 1 and g.same(found, g.local[rank]) and not g.same(found, g.serial):
            return f"all ranks update with the gradient of rank {g.numbers[rank]} alone"
    for rank in range(size):
        if size > 1 and g.same(found, total - g.local[rank]):
            return f"the gradient of rank {g.numbers[rank]} is missing in the sum"
    return ""


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])

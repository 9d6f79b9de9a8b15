"""The likely causes of differences in weights, samples, sums over ranks, the loss, or an update.

Each function gets what a rank has (`got`) and should have (`expected`), and gives a phrase, or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from parallel_dl.equivalence.compare import patterns

if TYPE_CHECKING:
    from parallel_dl.layout import Layout

Array = np.ndarray
Pieces = dict[int, tuple[Array, Array]]
"""rank -> (what it has, what it should have)"""

OWN_SUMMAND = "each rank has its own summand"
PENALTY = (
    "a term of the loss that does not come from the outputs, such as a penalty on weights: each call adds it, so "
    "scale it by len(targets) / total; if other ranks have some of the weights, use the optimizer's weight_decay"
)


# -- what several kinds of difference share ------------------------------------------------------------------------
def of_factor(found: float | None, layout: Layout) -> str | None:
    """What a constant factor says."""
    if found is None or not math.isfinite(found):
        return None
    if abs(found) < 1e-12:
        return "nothing arrived: a dropped message or a missing summand"
    times, share = patterns.whole(found), patterns.whole(1 / found)
    if times == -1:
        return "a wrong sign"
    for size, ranks in ((layout.dp, "replicas"), (layout.mp, "ranks that share the layer")):
        if size > 1 and times == size:
            return f"counted {size} times, once by each of the {size} {ranks}: reduced twice, or 1/{size} missing"
        if size > 1 and share == size:
            return f"divided by {size}: a mean over the {size} {ranks} in place of their sum"
    if layout.microbatches > 1 and times == layout.microbatches:
        return f"not scaled by 1/{layout.microbatches}: each microbatch counts as a whole batch"
    return None if times in (None, 1) else f"counted {times} times"


def of_ratio(got: Array, expected: Array, layout: Layout) -> str | None:
    """Whether it is what it should be times a constant, and what that says."""
    return of_factor(patterns.factor(expected, got), layout)


def of_order(got: Array, expected: Array, parts: int) -> str | None:
    """Whether `got` has the slices of `expected`, along some axis, in another order, or its axes exchanged."""
    found = patterns.order_of_slices(expected, got, (parts,))
    if found is not None:
        return f"a shard out of place: slices along axis {found[0]} in the order {found[1]}"
    return None if patterns.exchanged_axes(expected, got) is None else "transposed"


def of_another_piece(pieces: Pieces, rank: int, partners: Sequence[int]) -> str | None:
    """Whether a rank has what one of its `partners` should have."""
    got, expected = pieces[rank]
    for other in partners:
        if other in pieces and patterns.close(got, pieces[other][1]) and not patterns.close(got, expected):
            return f"a shard out of place: rank {rank} has what rank {other} should have"
    return None


def of_place(pieces: Pieces, rank: int, partners: Sequence[int]) -> str | None:
    """Whether it is what another rank should have, or the slices of what it should have in another order."""
    return of_another_piece(pieces, rank, partners) or of_order(*pieces[rank], len(partners))


def are_summands(pieces: Pieces, ranks: Sequence[int]) -> bool:
    """Whether these ranks have summands of what each of them should have."""
    own = [pieces[rank] for rank in ranks if rank in pieces]
    return bool(own) and patterns.add_up([got for got, _ in own], own[0][1])


# -- before a layer computes ---------------------------------------------------------------------------------------
def of_mesh(places: Sequence[dict[str, int]], layout: Layout) -> str | None:
    """Whether a rank is not at its place in the grid of ranks: see `mpi.mesh`."""
    sizes = {"pipe": layout.pp, "data": layout.dp, "model": layout.mp}
    for rank, place in enumerate(places):
        right = dict(zip(sizes, map(int, np.unravel_index(rank, tuple(sizes.values())))))
        if place != right:
            axes = [axis for axis, size in sizes.items() if size > 1]
            has, should = (", ".join(f"{axis} {at[axis]}" for axis in axes) for at in (place, right))
            return f"a wrong mesh: rank {rank} is at {has} in place of {should}"
    return None


def of_weights(got: Array, expected: Array, layout: Layout, first: bool, is_buffer: bool = False) -> str:
    """Of weights before a step; `first` says whether before the first one."""
    if first and not is_buffer and got.size and not got.any():
        return "weights that were never filled: zeros"
    found = of_order(got, expected, layout.mp) or of_ratio(got, expected, layout)
    if found is not None:
        return found
    if is_buffer:
        return "a buffer registered with other values" if first else "a buffer that was written by other rules"
    return "another seed or initialisation on this rank" if first else "another update in the step before"


def of_samples(got: Array, batch: Array, what: str = "samples") -> str:
    """Of a share of the samples, or of their targets; `batch` has all of them in order."""
    for start in range(len(batch) - len(got) + 1 if len(got) else 0):
        if np.array_equal(got, batch[start : start + len(got)]):
            return f"a data shard out of place: it has {what} {start} to {start + len(got) - 1} of the batch"
    return f"a data shard out of place: it has other {what}, or too few"


def of_arrival(got: Array, expected: Array, layout: Layout) -> str | None:
    """Of a layer's input, when what the layer before gave is right: of the way between them."""
    if not got.any():
        return "nothing arrived: zeros in place of the activation"
    found = of_order(got, expected, layout.mp) or of_ratio(got, expected, layout)
    if found is not None:
        return f"on its way: {found}"
    order = patterns.order_of_slices(expected, got, (len(got),), axes=(0,))
    return None if order is None else f"samples in another order on their way: {order[1]}"


# -- the loss ------------------------------------------------------------------------------------------------------
def of_divisor(found: float, total: int, microbatch: int, share: int) -> str | None:
    """Of a factor of the gradient of the network's output: what the loss was divided by."""
    for size, what in ((share, "of the rank's own share"), (microbatch, "of the microbatch")):
        if size and size != total and abs(found - total / size) < patterns.SAME * found:
            return f"a loss divided by the size {what} in place of the whole batch's ({total / size:.6g} times)"
    return None


def are_other_targets(got: Array, expected: Array, total: int) -> bool:
    """Whether gradients of scores differ as a cross-entropy's do with other targets: by 1 / total up, and down."""
    if got.shape != expected.shape or got.ndim != 2:
        return False
    moved = (got - expected) * total
    changed = moved[np.abs(moved).max(axis=1, initial=0) > 1e-6]
    one_up = np.abs(changed.max(axis=1, initial=0) - 1) < 1e-6
    return bool(len(changed)) and bool((one_up & (np.abs(np.abs(changed).sum(axis=1) - 2) < 1e-6)).all())


def of_loss(ours: float, theirs: float, layout: Layout) -> str | None:
    """Of the loss, when what goes back from it is right, or not known."""
    if layout.mp > 1 and abs(theirs - ours) > 0 and abs(abs(theirs - ours) - math.log(layout.mp)) < 1e-6:
        return f"log {layout.mp}: the normalisation of a split cross-entropy counted once per rank"
    return of_factor(theirs / ours, layout) if ours else None


# -- gradients and updates -----------------------------------------------------------------------------------------
def of_gradient(
    pieces: Pieces, rank: int, replicas: Sequence[int], partners: Sequence[int], own: Sequence[Array], layout: Layout
) -> str | None:
    """Of a weight's gradient; `own` has those of each microbatch by itself."""
    got, expected = pieces[rank]
    if got.shape != expected.shape:
        return f"a shard of another size: {got.shape} in place of {expected.shape}"
    found = of_ratio(got, expected, layout)
    if found is not None:
        return found
    if are_summands(pieces, replicas):
        return "a missing reduction over the replicas: each has the gradient of its own share"
    if are_summands(pieces, partners):
        return "a missing reduction over the ranks that share the layer: each has its own summand"
    lost = patterns.missing(own, got)
    if lost is not None:
        return f"not accumulated: the gradients of microbatches {lost} are missing"
    return of_place(pieces, rank, partners)


def of_summands(got: Array, summands: dict[int, Array | None]) -> str | None:
    """Whether a sum over ranks counts their summands more than once, not at all, or with another sign."""
    known = [array for array in summands.values() if array is not None]
    counts = patterns.counts(known, got) if len(known) == len(summands) else None
    wrong = [f"that of rank {rank} {count} times" for rank, count in zip(summands, counts or ()) if count != 1]
    return f"a sum over ranks that counts {', '.join(wrong)}" if wrong else None


def of_itself(got: Array, expected: Array, weight: Array) -> str | None:
    """Whether a gradient is off by a multiple of the weight itself, which a penalty on its square would add."""
    return PENALTY if got.shape == expected.shape and patterns.factor(weight, got - expected) else None


def of_update(got: Array, expected: Array, before: Array | None, layout: Layout) -> str | None:
    """Of the optimizer's state, or, with the weights `before`, of those after an update whose gradients are right."""
    if got.shape != expected.shape:
        if not got.size:
            return "missing in the parallel run: no rank has it"
        return f"gathered in another shape: {got.shape} in place of {expected.shape}"
    found = of_order(got, expected, layout.mp)
    if found is not None:
        return found
    if before is not None:
        got, expected = got - before, expected - before
    times = patterns.factor(expected, got)
    if times is None:
        return None
    what = "the update" if before is not None else "what the optimizer was given"
    return f"another rate, or another norm: the gradients are right, but {what} is {times:.6g} times the serial one"

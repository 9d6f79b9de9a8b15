"""What a difference is likely to come from: factors, summands, slices out of place, borders.

Each function gets what a rank has (`got`) and should have (`expected`), and gives a phrase, or None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from parallel_dl.nn import BatchNorm, Conv2d, Dropout, Linear, LocalResponseNorm, Module

if TYPE_CHECKING:
    from parallel_dl.layout import Layout

Array = np.ndarray
Pieces = dict[int, tuple[Array, Array]]
"""rank -> (what it has, what it should have)"""

Edges = dict[int, tuple[bool, bool]]
"""axis of an image -> whether another rank's tile is before ours, and after"""

_SAME = 1e-6  # of the largest value
_MOST_MICROBATCHES = 8  # whose subsets are tried


def close(a: Array, b: Array) -> bool:
    """Equal to 1e-6 of the largest value, and not all zero."""
    largest = float(np.abs(b).max()) if b.size else 0.0
    return a.shape == b.shape and 0 < largest < math.inf and float(np.abs(a - b).max()) <= _SAME * largest


def factor(got: Array, expected: Array) -> float | None:
    """got / expected, where it is one number for all elements that are not nearly zero; else None."""
    if got.shape != expected.shape or not expected.size:
        return None
    large = np.abs(expected) > 1e-3 * np.abs(expected).max()
    if not large.any():
        return None
    ratios = got[large] / expected[large]
    middle = float(np.median(ratios))
    if not math.isfinite(middle) or float(np.abs(ratios - middle).max()) > 1e-6 * max(1.0, abs(middle)):
        return None
    return middle if close(got, middle * expected) or middle == 0 else None


def of_factor(found: float | None, layout: Layout, axes: Sequence[str] = ("dp", "mp")) -> str | None:
    """What a constant factor says."""
    if found is None or not math.isfinite(found):
        return None
    if abs(found) < 1e-12:
        return "nothing arrived: a dropped message or a missing summand"
    if abs(found + 1) < 1e-6:
        return "a wrong sign"
    for axis in axes:
        size = getattr(layout, axis)
        ranks = {"dp": "replicas", "mp": "ranks that share the layer"}[axis]
        if size > 1 and abs(found - size) < 1e-6 * size:
            return f"counted {size} times, once by each of the {size} {ranks}: reduced twice, or 1/{size} missing"
        if size > 1 and abs(found * size - 1) < 1e-6:
            return f"divided by {size}: a mean over the {size} {ranks} in place of their sum"
    if layout.microbatches > 1 and abs(found - layout.microbatches) < 1e-6 * found:
        return f"not scaled by 1/{layout.microbatches}: each microbatch counts as a whole batch"
    if round(found) != 1 and abs(found - round(found)) < 1e-6:
        return f"counted {round(found)} times"
    return None


def of_place(got: Array, rank: int, pieces: Pieces, partners: Sequence[int]) -> str | None:
    """Whether it is what another rank should have, or the slices of what it should have in another order."""
    found = of_another_piece(pieces, rank, partners)
    return found or of_order(got, pieces[rank][1], len(partners))


def of_another_piece(pieces: Pieces, rank: int, partners: Sequence[int]) -> str | None:
    """Whether a rank has what one of its `partners` should have."""
    got, expected = pieces[rank]
    for other in partners:
        if other != rank and other in pieces and close(got, pieces[other][1]) and not close(got, expected):
            return f"a shard out of place: rank {rank} has what rank {other} should have"
    return None


def of_order(got: Array, expected: Array, parts: int) -> str | None:
    """Whether `got` has the slices of `expected`, along some axis, in another order, or its axes exchanged."""
    if got.shape == expected.shape:
        for axis in range(got.ndim):
            if 1 < parts <= min(6, got.shape[axis]):
                blocks = np.array_split(expected, parts, axis)
                for order in itertools.permutations(range(parts)):
                    if order != tuple(range(parts)):
                        other = np.concatenate([blocks[i] for i in order], axis)
                        if close(got, other):
                            return f"a shard out of place: slices along axis {axis} in the order {list(order)}"
    if got.ndim == 2 and close(got.T, expected):
        return "transposed"
    return None


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


def of_weights(got: Array, expected: Array, layout: Layout, first: bool, is_buffer: bool = False) -> str | None:
    """Of weights before a step; `first` says whether before the first one."""
    if first and not is_buffer and got.size and not got.any():
        return "weights that were never filled: zeros"
    found = of_order(got, expected, layout.mp) or of_factor(factor(got, expected), layout)
    if found is not None:
        return found
    if is_buffer:
        return "a buffer registered with other values" if first else "a buffer that was written by other rules"
    return "another seed or initialisation on this rank" if first else "another update in the step before"


def of_samples(got: Array, batch: Array, what: str = "samples") -> str | None:
    """Of a share of the samples, or of their targets; `batch` has all of them in order."""
    if len(got) and len(got) <= len(batch):
        for start in range(len(batch) - len(got) + 1):
            if np.array_equal(got, batch[start : start + len(got)]):
                return f"a data shard out of place: it has {what} {start} to {start + len(got) - 1} of the batch"
    return f"a data shard out of place: it has other {what}, or too few"


def of_arrival(got: Array, expected: Array, layout: Layout) -> str | None:
    """Of a layer's input, when what the layer before gave is right: of the way between them."""
    if not got.any():
        return "nothing arrived: zeros in place of the activation"
    found = of_order(got, expected, layout.mp) or of_factor(factor(got, expected), layout)
    if found is None and len(got) == len(expected):
        largest = float(np.abs(expected).max(initial=0.0))
        order = [next((j for j, b in enumerate(expected) if np.abs(a - b).max() <= _SAME * largest), -1) for a in got]
        if sorted(order) == list(range(len(got))):
            return f"samples in another order on their way: {order}"
    return found and f"on its way: {found}"


def of_summands(got: Array, summands: dict[int, Array | None]) -> str | None:
    """Whether a sum over ranks counts their summands more than once, not at all, or with another sign."""
    known = {rank: array.ravel() for rank, array in summands.items() if array is not None and array.shape == got.shape}
    if len(known) != len(summands) or len(known) < 2 or got.size < len(known):
        return None
    matrix = np.stack(list(known.values()), axis=1)
    counts = np.linalg.lstsq(matrix, got.ravel(), rcond=None)[0]
    if not close(matrix @ np.round(counts), got.ravel()):
        return None
    wrong = [f"that of rank {rank} {round(count)} times" for rank, count in zip(known, counts) if round(count) != 1]
    return f"a sum over ranks that counts {', '.join(wrong)}" if wrong else None


def of_forward(
    layer: Module,
    pieces: Pieces,
    rank: int,
    partners: Sequence[int],
    weights: dict[str, Array],
    name: str,
    layout: Layout,
    edges: Edges,
) -> str | None:
    """Of a layer's output."""
    got, expected = pieces[rank]
    if got.shape != expected.shape:
        return _of_size(got, expected, edges)
    if isinstance(layer, Dropout):
        return "another dropout mask: it must depend on seed, step, layer and the sample's place, not on the rank"
    if isinstance(layer, BatchNorm):
        return "batch norm statistics of the rank's own samples or pixels, not of all: a missing reduction"
    found = of_place(got, rank, pieces, partners)
    bias = weights.get(f"{name}.bias")
    if found is None and bias is not None and isinstance(layer, Linear | Conv2d):
        found = _of_bias(pieces, rank, partners, bias, 1 if isinstance(layer, Conv2d) else got.ndim - 1)
    if found is None and _are_summands(pieces, partners):
        found = "a missing reduction: each rank has its own summand"
    if found is None:
        found = of_factor(factor(got, expected), layout)
    if found is None:
        found = _of_borders(got, expected, edges)
    if found is None and len(partners) > 1 and isinstance(layer, LocalResponseNorm):
        found = "halo channels missing: the neighbours of the rank's channels"
    return found


def _are_summands(pieces: Pieces, partners: Sequence[int]) -> bool:
    """Whether the ranks that share a value have summands of it."""
    own = [pieces[rank][0] for rank in partners if rank in pieces]
    expected = pieces[partners[0]][1] if partners[0] in pieces else None
    if expected is None or len(own) < 2 or any(array.shape != expected.shape for array in own):
        return False
    return close(np.sum(own, axis=0), expected)


def _of_bias(pieces: Pieces, rank: int, partners: Sequence[int], bias: Array, axis: int) -> str | None:
    got, expected = pieces[rank]
    if got.ndim < 2 or bias.shape != (expected.shape[axis],):
        return None
    along = [1] * got.ndim
    along[axis] = -1
    whole = np.broadcast_to(bias.reshape(along), got.shape)
    count = factor(got - expected, whole)
    if count is not None and abs(count - round(count)) < 1e-6 and round(count):
        times = round(count) + 1
        if times <= 0:
            return "the bias left out" if times == 0 else "the bias subtracted"
        return f"the bias added {times} times"
    # each rank its own summand, and the bias in all of them, or in none
    own = [pieces[other][0] for other in partners if other in pieces]
    if len(own) > 1 and all(array.shape == expected.shape for array in own):
        for times in (len(own) - 1, -1, 0):
            if close(np.sum(own, axis=0) - times * whole, expected):
                return "a missing reduction: each rank has its own summand"
    return None


def _of_size(got: Array, expected: Array, edges: Edges) -> str:
    """For a wrong shape: a tile that lacks rows at the border of another tile lacks its halo."""
    of_size = f"{got.shape} in place of {expected.shape}"
    if got.ndim == expected.ndim == 4 and got.shape[:2] == expected.shape[:2]:
        for axis, what in ((2, "rows"), (3, "columns")):
            if got.shape[axis] < expected.shape[axis] and any(edges[axis]):
                return f"halo {what} missing: a tile of another size, {of_size}"
    return f"a shard of another size: {of_size}"


def _of_borders(got: Array, expected: Array, edges: Edges) -> str | None:
    """Whether only values at a border of the rank's tile are wrong, or all rows or columns are shifted."""
    if got.ndim != 4:
        return None
    wrong = np.abs(got - expected) > 1e-9 * np.abs(expected).max(initial=0.0)
    for axis, what in ((2, "rows"), (3, "columns")):
        size = got.shape[axis]
        lines = np.flatnonzero(wrong.any(axis=tuple(other for other in range(4) if other != axis))).tolist()
        if len(lines) < size and (0 in lines or size - 1 in lines):
            return _of_lines(lines, size, what, edges[axis])
        for by in range(1, min(4, size)):
            first, last = np.arange(size - by), np.arange(by, size)
            for ours, theirs in ((first, last), (last, first)):
                if close(got.take(ours, axis), expected.take(theirs, axis)):
                    return f"{what} shifted by {by}: a wrong padding, or a tile that begins at the wrong place"
    return None


def _of_lines(lines: list[int], size: int, what: str, neighbours: tuple[bool, bool]) -> str:
    """Of wrong lines at a border: where the next tile begins they need its halo, and elsewhere the padding."""
    only = f"only {what} {lines} of the rank's tile are wrong"
    at_border = [has_neighbour for has_neighbour, line in zip(neighbours, (0, size - 1)) if line in lines]
    if all(at_border):
        return f"halo {what} missing: {only}"
    if any(at_border):
        return f"halo {what} missing, or a wrong padding: {only}"
    return f"a wrong padding: {only}, and they are at the border of the image"


def of_divisor(found: float, total: int, microbatch: int, share: int, layout: Layout) -> str | None:
    """Of the gradient of the network's output: what the loss was divided by."""
    for size, what in ((share, "of the rank's own share"), (microbatch, "of the microbatch")):
        if size and size != total and abs(found - total / size) < 1e-6 * found:
            return f"a loss divided by the size {what} in place of the whole batch's ({total / size:.6g} times)"
    return of_factor(found, layout)


def of_loss(ours: float, theirs: float, layout: Layout) -> str | None:
    """Of the loss, when what goes back from it is right, or not known."""
    if layout.mp > 1 and abs(theirs - ours) > 0 and abs(abs(theirs - ours) - math.log(layout.mp)) < 1e-6:
        return f"log {layout.mp}: the normalisation of a split cross-entropy counted once per rank"
    return of_factor(theirs / ours, layout) if ours else None


def of_backward(pieces: Pieces, rank: int, partners: Sequence[int], layout: Layout, edges: Edges) -> str | None:
    """Of the gradient of a layer's output."""
    got, expected = pieces[rank]
    if got.shape != expected.shape:
        return _of_size(got, expected, edges)
    if _are_summands(pieces, partners):
        return "a missing reduction in backward: each rank has its own summand"
    found = of_place(got, rank, pieces, partners) or of_factor(factor(got, expected), layout)
    if found is None:
        found = _of_borders(got, expected, edges)
    if found is None and len(partners) > 1 and all(r in pieces for r in partners):
        total = np.sum([pieces[r][0] for r in partners], axis=0) if _alike(pieces, partners) else None
        if total is not None and close(total / len(partners), expected):
            return "a missing reduction in backward: each rank has its own summand"
    return found


def _alike(pieces: Pieces, ranks: Sequence[int]) -> bool:
    return len({pieces[rank][0].shape for rank in ranks}) == 1


def of_gradient(
    pieces: Pieces, rank: int, replicas: Sequence[int], partners: Sequence[int], own: Sequence[Array], layout: Layout
) -> str | None:
    """Of a weight's gradient; `own` has those of each microbatch by itself."""
    got, expected = pieces[rank]
    if got.shape != expected.shape:
        return f"a shard of another size: {got.shape} in place of {expected.shape}"
    found = of_factor(factor(got, expected), layout)
    if found is not None:
        return found
    if len(replicas) > 1 and _are_summands(pieces, replicas):
        return "a missing reduction over the replicas: each has the gradient of its own share"
    if len(partners) > 1 and _are_summands(pieces, partners):
        return "a missing reduction over the ranks that share the layer: each has its own summand"
    if 1 < len(own) <= _MOST_MICROBATCHES:
        for count in range(1, len(own)):
            for chosen in itertools.combinations(range(len(own)), count):
                if close(got, np.sum([own[number] for number in chosen], axis=0)):
                    lost = [number for number in range(len(own)) if number not in chosen]
                    return f"not accumulated: the gradients of microbatches {lost} are missing"
    return of_place(got, rank, pieces, partners)


def of_itself(got: Array, expected: Array, weight: Array) -> bool:
    """Whether a gradient is off by a multiple of the weight itself, which a penalty on its square would add."""
    times = factor(got - expected, weight) if got.shape == expected.shape else None
    return times is not None and times != 0


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
    times = factor(got, expected)
    if times is None:
        return None
    what = "the update" if before is not None else "what the optimizer was given"
    return f"another rate, or another norm: the gradients are right, but {what} is {times:.6g} times the serial one"

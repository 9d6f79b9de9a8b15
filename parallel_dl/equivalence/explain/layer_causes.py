"""The likely causes of a wrong output, or wrong gradient, of a layer.

As in `causes`; here it matters what kind of layer it is, and where a rank's tile of an image has neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from parallel_dl.equivalence.compare import patterns
from parallel_dl.equivalence.explain.causes import OWN_SUMMAND, Array, Pieces, are_summands, of_place, of_ratio
from parallel_dl.nn import BatchNorm, Conv2d, Dropout, Linear, LocalResponseNorm, Module

if TYPE_CHECKING:
    from parallel_dl.layout import Layout

Edges = dict[int, tuple[bool, bool]]
"""axis of an image -> whether another rank's tile is before ours, and after"""

LINES = ((2, "rows"), (3, "columns"))  # of an image (n, channels, height, width)
MOST_SHIFTED = 3  # lines


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
    found = of_place(pieces, rank, partners)
    if found is None and isinstance(layer, Linear | Conv2d):
        bias = _along(weights.get(f"{name}.bias"), expected, 1 if isinstance(layer, Conv2d) else -1)
        found = _of_bias(got, expected, bias) or of_summands(pieces, partners, bias)
    if found is None and are_summands(pieces, partners):
        found = f"a missing reduction: {OWN_SUMMAND}"
    found = found or of_ratio(got, expected, layout) or _of_borders(got, expected, edges)
    if found is None and len(partners) > 1 and isinstance(layer, LocalResponseNorm):
        found = "halo channels missing: the neighbours of the rank's channels"
    return found


def of_own_layer(pieces: Pieces, partners: Sequence[int], weights: Iterable[Array]) -> str | None:
    """Of the output of a layer that is not ours, with any weight as its bias: whether a sum over ranks is missing.

    Ranks that all have the same are not taken for summands: the layer may as well divide by their number.
    """
    own = [pieces[rank] for rank in partners if rank in pieces]
    if len(own) < 2 or all(patterns.close(got, own[0][0]) for got, _ in own):
        return None
    expected = own[0][1]
    biases = [_along(weight, expected, axis) for weight in weights for axis in (-1, 1)]
    return next(filter(None, (of_summands(pieces, partners, bias) for bias in (None, *biases))), None)


def of_summands(pieces: Pieces, partners: Sequence[int], bias: Array | None) -> str | None:
    """Whether each rank has its own summand of the output, and the bias is in all of them, or in none."""
    own = [pieces[rank] for rank in partners if rank in pieces]
    if len(own) < 2 or any(got.shape != own[0][1].shape for got, _ in own):
        return None
    total, expected = np.sum([got for got, _ in own], axis=0), own[0][1]
    totals = [total] if bias is None else [total - times * bias for times in (len(own) - 1, -1, 0)]
    return f"a missing reduction: {OWN_SUMMAND}" if any(patterns.close(one, expected) for one in totals) else None


def _along(bias: Array | None, expected: Array, axis: int) -> Array | None:
    """A bias in the shape of an output (n, ...) that it is added to along an axis; None where it does not fit."""
    if bias is None or expected.ndim < 2 or bias.shape != (expected.shape[axis],):
        return None
    return np.broadcast_to(np.moveaxis(bias.reshape(-1, *[1] * (expected.ndim - 1)), 0, axis), expected.shape)


def _of_bias(got: Array, expected: Array, bias: Array | None) -> str | None:
    """Whether the bias is in it another number of times than once."""
    more = patterns.factor(bias, got - expected) if bias is not None else None
    times = None if more is None else patterns.whole(more)
    if times is None:
        return None
    if times < 0:
        return "the bias left out" if times == -1 else "the bias subtracted"
    return f"the bias added {times + 1} times"


def of_backward(pieces: Pieces, rank: int, partners: Sequence[int], layout: Layout, edges: Edges) -> str | None:
    """Of the gradient of a layer's output."""
    got, expected = pieces[rank]
    if got.shape != expected.shape:
        return _of_size(got, expected, edges)
    missing = f"a missing reduction in backward: {OWN_SUMMAND}"
    if are_summands(pieces, partners):
        return missing
    found = of_place(pieces, rank, partners) or of_ratio(got, expected, layout) or _of_borders(got, expected, edges)
    own = [pieces[other][0] / len(partners) for other in partners if other in pieces]
    return missing if found is None and len(own) == len(partners) and patterns.add_up(own, expected) else found


# -- tiles of images -----------------------------------------------------------------------------------------------
def _of_size(got: Array, expected: Array, edges: Edges) -> str:
    """For a wrong shape: a tile that lacks rows at the border of another tile lacks its halo."""
    of_size = f"{got.shape} in place of {expected.shape}"
    if got.ndim == expected.ndim == 4 and got.shape[:2] == expected.shape[:2]:
        for axis, what in LINES:
            if got.shape[axis] < expected.shape[axis] and any(edges[axis]):
                return f"halo {what} missing: a tile of another size, {of_size}"
    return f"a shard of another size: {of_size}"


def _of_borders(got: Array, expected: Array, edges: Edges) -> str | None:
    """Whether only values at a border of the rank's tile are wrong, or all rows or columns are shifted."""
    if got.ndim != 4:
        return None
    wrong = np.abs(got - expected) > 1e-9 * np.abs(expected).max(initial=0.0)
    for axis, what in LINES:
        size = got.shape[axis]
        lines = np.flatnonzero(wrong.any(axis=tuple(other for other in range(4) if other != axis))).tolist()
        if len(lines) < size and (0 in lines or size - 1 in lines):
            return _of_lines(lines, size, what, edges[axis])
        by = patterns.shift(expected, got, axis, MOST_SHIFTED)
        if by is not None:
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

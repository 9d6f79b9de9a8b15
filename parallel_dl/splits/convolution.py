"""Convolutions: by filters, by input channels, or by tiles of the image.

    filters   rank r has some of the filters, and makes their channels of the result; x is replicated, or for a grouped
              convolution the channels that these filters see; towers are filters that are cut between groups
    channels  rank r has a slice of the input channels, and every filter's part for them; the results are summed
    tiles     rank r makes a tile of the result, with all weights, from the tile of x under it: rows (and columns) that
              other ranks own come as copies, and their gradients go back and are added; those of the weights are summed

How it is computed never depends on the split: the method is chosen for the unsplit shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.convolution import Geometry, choose
from parallel_dl.errors import InputError
from parallel_dl.mesh import Partial, Replicated, Shard, Windows, even, slices
from parallel_dl.splits.rule import Division, Finish, Position, Site, rule
from parallel_dl.splits.tiles import Tiling, is_tiled
from parallel_dl.splits.way import IMAGE


@rule(nn.Conv2d)
def unsplit(site: Site) -> Division:
    """It stays in tiles; otherwise every rank does all of it."""
    if is_tiled(site.before):
        return by_tiles(site)
    return Division(site.invariant, site.invariant)


@rule(nn.Conv2d, "filters")
def by_filters(site: Site) -> Division:
    """Even slices of the filters."""
    return _by_filters(site, site.even("outputs"))


@rule(nn.Conv2d, "channels", where=lambda layer: layer.groups == 1)
def by_channels(site: Site) -> Division:
    """Rank r makes a summand of every channel; the bias waits for the sum."""
    come = site.features
    sizes = come.sizes if come is not None and come.sizes is not None else site.even("inputs")
    return Division(
        site.on(Partial()),
        site.on(Shard(1, sizes)),
        site.weights(Shard(1, sizes), "weight"),
        lambda layer, x, at: convolve(layer, at, x, layer.weight, None),
        Finish(_add_bias, ("bias",), 1) if site.layer.bias is not None else None,
        work_input=lambda rank: (sizes[rank], *site.x[1:]),
    )


@rule(nn.Conv2d, "towers", where=lambda layer: layer.groups > 1)
def by_towers(site: Site) -> Division:
    """Whole groups of filters."""
    layer = site.layer
    per_group = layer.out_channels // layer.groups
    return _by_filters(site, tuple(towers * per_group for towers in even(layer.groups, site.ranks)))


@rule(nn.Conv2d, "image", names=IMAGE)
def by_tiles(site: Site) -> Division:
    """Every rank has all weights, and gradients from its own tile."""
    geometry = site.layer.geometry(site.batch)
    tiling = Tiling.of(geometry.vertical, geometry.horizontal, site)
    return Division(
        tiling.output,
        tiling.input,
        site.all_weights(Replicated()),
        _OfTile(tiling),
    )


def _by_filters(site: Site, sizes: tuple[int, ...]) -> Division:
    layer, own = site.layer, slices(sizes)
    seen = tuple(_seen(layer, filters) for filters in own)
    come, cut = site.on(Replicated()), False
    if layer.groups > 1:
        exactly = site.features is not None and slices(site.features.sizes or ()) == seen
        cut = site.features is not None and (exactly or site.cutting.may_overlap)
        come = site.on(Windows(1, seen)) if cut else come
        come = site.before if exactly else come
    weights = site.weights(Shard(0, sizes), "weight", "bias")
    return Division(site.on(Shard(1, sizes)), come, weights, _OfFilters(own, seen, cut))


def _seen(layer: Any, filters: slice) -> slice:
    """The input channels that these filters see."""
    if layer.groups == 1:
        return slice(0, layer.in_channels)
    per_group, seen_per_group = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    first, last = (0, 0) if filters.start == filters.stop else (filters.start, filters.stop)
    first, last = (first // per_group, -(-last // per_group)) if per_group else (0, 0)
    return slice(first * seen_per_group, last * seen_per_group)


# -- local maths ---------------------------------------------------------------------------------------------------
def convolve(layer: Any, at: Position, x: Any, weight: Any, bias: Any, **changes: Any) -> Tensor:
    """A part of the convolution, by the method that the unsplit one takes."""
    sizes = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    method = layer.method
    if method == "auto":
        whole = Geometry.of((1, *at.input), layer.weight.whole_shape, **sizes)
        method = choose(whole, np.result_type(x.dtype, weight.dtype))
    try:
        return ops.conv2d(x, weight, bias, **{**sizes, **changes}, method=method)
    except InputError as error:
        raise layer.input_error(x, str(error)) from None


def nothing(layer: Any, x: Any, channels: int, rows: int, columns: int) -> Tensor:
    """An empty result, of a rank that has nothing to compute."""
    return Tensor(np.empty((x.shape[0], channels, rows, columns), np.result_type(x.dtype, layer.weight.dtype)))


def _add_bias(layer: Any, y: Any) -> Tensor:
    return ops.add(y, ops.reshape(layer.bias, shape=(layer.bias.shape[0], 1, 1)))


@dataclass(frozen=True)
class _OfFilters:
    """By rank, the filters `own` and the channels `seen` that they see; x is the latter only where `cut`."""

    own: tuple[slice, ...]
    seen: tuple[slice, ...]
    cut: bool

    def __call__(self, layer: Any, x: Any, at: Position) -> Tensor:
        own, seen = self.own[at.rank], self.seen[at.rank]
        if layer.groups > 1 and not self.cut:
            x = ops.index(x, index=(slice(None), seen))
        parts = list(_parts(layer, own, seen))
        if not parts:  # fewer filters, or towers, than ranks
            return nothing(layer, x, 0, *at.output[1:])
        if len(parts) == 1:
            return convolve(layer, at, x, layer.weight, layer.bias, groups=parts[0][2])
        outputs = []
        for filters, channels, groups in parts:
            bias = None if layer.bias is None else ops.index(layer.bias, index=filters)
            own_x, weight = ops.index(x, index=(slice(None), channels)), ops.index(layer.weight, index=filters)
            outputs.append(convolve(layer, at, own_x, weight, bias, groups=groups))
        return ops.concatenate(*outputs, axis=1)


def _parts(layer: Any, own: slice, seen: slice) -> Iterator[tuple[slice, slice, int]]:
    """(filters of ours, channels of x, groups): a part of a group's filters, or several groups in full."""
    per_group, seen_per_group = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    at = own.start
    while at < own.stop:
        group, inside = divmod(at, per_group)
        groups = max(1, (own.stop - at) // per_group) if inside == 0 else 1
        stop = min(own.stop, (group + groups) * per_group)
        first, last = (edge * seen_per_group - seen.start for edge in (group, group + groups))
        yield slice(at - own.start, stop - own.start), slice(first, last), groups
        at = stop


@dataclass(frozen=True)
class _OfTile:
    tiling: Tiling

    def __call__(self, layer: Any, x: Any, at: Position) -> Tensor:
        window = self.tiling.at(at.rank)
        rows, columns = (line.length for line in window)
        if not rows or not columns:
            return nothing(layer, x, layer.out_channels, rows, columns)
        padding = tuple((line.before, line.after) for line in window)
        return convolve(layer, at, x, layer.weight, layer.bias, padding=padding)

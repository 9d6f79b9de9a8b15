"""Layers that work on what comes, value by value, and Flatten, which turns slices of channels into such of features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from parallel_dl import nn
from parallel_dl.mesh import Placement, Shape, Shard, even
from parallel_dl.splits.rule import Division, Position, Site, rule
from parallel_dl.splits.tiles import is_tiled


def _follow(site: Site) -> Division:
    return Division(site.before)


for _kind in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity):
    rule(_kind)(_follow)


@rule(nn.Dropout)
def dropout(site: Site) -> Division:
    """Of the mask of the whole, each rank takes its part."""
    if site.before.has(Shard):
        return Division(site.before, local=_OfPart(site.before, site.x))
    return Division(site.before)


@dataclass(frozen=True)
class _OfPart:
    placement: Placement
    whole: Shape

    def __call__(self, layer: Any, x: Any, at: Position) -> Any:
        return layer.masked(x, self.whole, self.placement.index(at.rank, (x.shape[0], *self.whole)))


@rule(nn.Flatten)
def flatten(site: Site) -> Division:
    """Slices of channels become slices of features; tiles become them where the next layer wants them."""
    before = site.before
    if is_tiled(before) and site.next_way == "input":
        before = site.on(Shard(1, even(site.x[0], site.ranks)))
    come = before.shard(1)
    if come is None or come.sizes is None:
        return Division(site.before) if site.before.uniform() is not None else Division(site.invariant, site.invariant)
    rest = math.prod(site.x[1:])
    return Division(site.on(Shard(1, tuple(size * rest for size in come.sizes))), before)

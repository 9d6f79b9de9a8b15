"""Pooling: treats each channel separately, so it follows slices of channels; image tiles need halos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.mesh import Partial
from parallel_dl.splits.rule import Division, Position, Site, rule
from parallel_dl.splits.tiles import Tiling, is_tiled
from parallel_dl.splits.way import IMAGE


def _follow(site: Site) -> Division:
    if is_tiled(site.before):
        return _by_tiles(site)
    return Division(site.before, work_input=lambda rank: site.before.shape(rank, (1, *site.x))[1:])


def _by_tiles(site: Site) -> Division:
    vertical, horizontal = site.layer.windows(site.batch)
    tiling = Tiling.of(vertical, horizontal, site)
    return Division(
        tiling.output, tiling.input, local=_OfTile(tiling), work_input=lambda rank: tiling.counted(rank, site.x)
    )


for _kind in (nn.MaxPool2d, nn.AvgPool2d):
    rule(_kind)(_follow)
    rule(_kind, "image", names=IMAGE)(_by_tiles)


@dataclass(frozen=True)
class _OfTile:
    tiling: Tiling

    def __call__(self, layer: Any, x: Any, at: Position) -> Any:
        window = self.tiling.at(at.rank)
        rows, columns = (line.length for line in window)
        if not rows or not columns:
            return Tensor(np.empty((*x.shape[:2], rows, columns), x.dtype))
        padding = tuple((line.before, line.after) for line in window)
        return type(layer).operation(x, kernel=layer.kernel_size, stride=layer.stride, padding=padding)


@rule(nn.GlobalAvgPool2d)
def global_pooling(site: Site) -> Division:
    """Each tile makes its summand of the mean."""
    own = lambda rank: site.before.shape(rank, (1, *site.x))[1:]  # noqa: E731
    if is_tiled(site.before):
        return Division(site.on(Partial()), site.before, local=_mean_of_tile, work_input=own)
    return Division(site.before, work_input=own)


def _mean_of_tile(layer: Any, x: Any, at: Position) -> Tensor:
    layer.require(x)
    return ops.divide(ops.sum(x, axis=(2, 3), keepdims=True), at.input[1] * at.input[2])

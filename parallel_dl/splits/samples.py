"""Along the samples: each rank of the model axis has a share of the batch, and all weights of the layer.

It is data parallelism of one layer over the ranks that share it (Krizhevsky 2014, "One weird trick", arXiv 1404.5997,
does it with the convolutions). Any layer can be split so that computes each sample by itself; batch norm sums its
statistics over the ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.mesh import Placement, Replicated, Shard
from parallel_dl.splits.normalization import messages_of_sums
from parallel_dl.splits.rule import Division, Position, Site

SAMPLES = 0  # the array axis


def by_samples(site: Site) -> Division:
    """Every rank has all weights, and gradients from its own samples."""
    share = site.on(Shard(SAMPLES))
    inside = [module for _, module in site.layer.named_modules()]
    norms = [module for module in inside if isinstance(module, nn.BatchNorm)]
    draws = any(isinstance(module, nn.Dropout) for module in inside)
    return Division(
        share,
        share,
        site.all_weights(Replicated()),
        _of_share if draws else None,
        messages=tuple(message for norm in norms for message in messages_of_sums(norm)),
    )


def is_along_samples(placement: Placement) -> bool:
    """Whether each rank has a share of the samples."""
    return placement.shard(SAMPLES) is not None


def _of_share(layer: Any, x: Any, at: Position) -> Any:
    """Dropout's masks are those of this rank's samples."""
    position, own = layer.position, at.samples()
    before = position.first_sample
    position.first_sample = before[own] if isinstance(before, np.ndarray) else before + own.start
    try:
        return layer.forward(x)
    finally:
        position.first_sample = before

"""Fully connected layers: y = x W^T + b by several ranks at the same time, with x (..., in) and W (out, in).

    output, or column:  the rows W_r of W:     y_r = x W_r^T + b_r    a slice of y; x is replicated
    input, or row:      the columns W_r of W:  y = sum_r x_r W_r^T + b; x_r is a slice of x, and b is added once

(Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, section 3, names them after the columns and rows of W^T.) After
an output split and an element-wise layer, an input split takes the slices as they are, and the pair has one all-reduce
forward and one backward.
"""

from __future__ import annotations

from typing import Any

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.mesh import Partial, Replicated, Shard
from parallel_dl.splits.rule import Division, Finish, Position, Site, rule


@rule(nn.Linear)
def unsplit(site: Site) -> Division:
    """Every rank does all of it."""
    return Division(site.invariant, site.invariant)


@rule(nn.Linear, "output")
def by_output(site: Site) -> Division:
    """Rank r has rows of the weight, and makes their features."""
    sizes = site.even("outputs")
    weights = site.weights(Shard(0, sizes), "weight", "bias")
    output = site.on(Shard(len(site.x), sizes))
    return Division(output, site.on(Replicated()), weights)


@rule(nn.Linear, "input")
def by_input(site: Site) -> Division:
    """Rank r has columns of the weight, and makes a summand of all features; the bias waits for the sum."""
    last, come = len(site.x), site.features
    sizes = come.sizes if last == 1 and come is not None and come.sizes is not None else site.even("inputs")
    return Division(
        site.on(Partial()),
        site.on(Shard(last, sizes)),
        site.weights(Shard(1, sizes), "weight"),
        _summand,
        Finish(_add_bias, ("bias",), last) if site.layer.bias is not None else None,
        work_input=lambda rank: (*site.x[:-1], sizes[rank]),
    )


def _summand(layer: Any, x: Any, at: Position) -> Tensor:
    own = layer.weight.shape[1]
    if x.shape[-1] != own:
        whole = ' (for whole ones give input="whole")' if x.shape[-1] == layer.in_features else ""
        raise layer.input_error(x, f"needs (..., {own}), its slice of {layer.in_features}{whole}")
    return ops.linear(x, layer.weight)


def _add_bias(layer: Any, y: Any) -> Tensor:
    return ops.add(y, layer.bias)

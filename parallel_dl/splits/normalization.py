"""Normalisation of split activations: response norm needs the neighbours' channels, batch norm sums over all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.mesh import Message, Replicated, Shard, Windows, slices
from parallel_dl.splits.rule import Division, Position, Site, rule
from parallel_dl.splits.tiles import is_tiled


@rule(nn.LayerNorm)
def layer_norm(site: Site) -> Division:
    """It needs all features of a sample."""
    return Division(site.invariant, site.invariant)


# -- response norm -------------------------------------------------------------------------------------------------
@rule(nn.LocalResponseNorm)
def response_norm(site: Site) -> Division:
    """A window of channels reaches over to the neighbours' channels, but not into another tower."""
    come = site.features
    if come is None:
        return Division(site.before)
    own = slices(come.sizes or ())
    width = site.x[0] // site.layer.groups
    # backward needs what the windows around the neighbours hold: the adjoint sends it back, nothing more is needed
    seen = tuple(_reach(site.layer, one, width) for one in own)
    if seen != own and not site.cutting.may_overlap:
        return Division(site.invariant, site.invariant)
    wanted = site.before if seen == own else site.on(Windows(1, seen))
    return Division(site.before, wanted, local=_OfChannels(own, seen, width))


def _reach(layer: Any, own: slice, width: int) -> slice:
    """The channels that the windows around these hold; `width` is that of a tower."""
    if own.start == own.stop:
        return slice(0, 0)
    first_tower, last_tower = own.start // width, (own.stop - 1) // width
    first = max(own.start - layer.size // 2, first_tower * width)
    return slice(first, min(own.stop + (layer.size - 1) // 2, (last_tower + 1) * width))


@dataclass(frozen=True)
class _OfChannels:
    """By rank, the channels `own` of the result, and the `seen` around them in x; no window reaches beyond a tower."""

    own: tuple[slice, ...]
    seen: tuple[slice, ...]
    width: int

    def __call__(self, layer: Any, x: Any, position: Position) -> Tensor:
        own, seen = self.own[position.rank], self.seen[position.rank]
        outputs = []
        at = own.start
        while at < own.stop:  # tower by tower
            tower = at // self.width
            stop = min(own.stop, (tower + 1) * self.width)
            first, last = max(seen.start, tower * self.width), min(seen.stop, (tower + 1) * self.width)
            inside = _between(x, first - seen.start, last - seen.start)
            y = ops.local_response_norm(inside, size=layer.size, alpha=layer.alpha, beta=layer.beta, k=layer.k)
            outputs.append(_between(y, at - first, stop - first))
            at = stop
        if not outputs:
            return Tensor(np.empty((x.shape[0], 0, *x.shape[2:]), x.dtype))
        return outputs[0] if len(outputs) == 1 else ops.concatenate(*outputs, axis=1)


def _between(x: Any, first: int, last: int) -> Any:
    whole = first == 0 and last == x.shape[1]
    return x if whole else ops.index(x, index=(slice(None), slice(first, last)))


# -- batch norm ----------------------------------------------------------------------------------------------------
def _batch_norm(site: Site) -> Division:
    come = site.features
    if come is not None and come.sizes is not None:
        names = ("weight", "bias", "running_mean", "running_var")
        return Division(site.before, site.before, site.weights(Shard(0, come.sizes), *names))
    if is_tiled(site.before):
        return Division(
            site.before,
            site.before,
            site.weights(Replicated(), "weight", "bias"),
            summed_batch_norm,
            messages=messages_of_sums(site.layer),
        )
    return Division(site.before)


for _kind in (nn.BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d):
    rule(_kind)(_batch_norm)


def messages_of_sums(layer: Any) -> tuple[Message, ...]:
    """In float64: the values and their number, then the squares; backward two sums."""
    sums = (("forward", layer.features + 1), ("forward", layer.features), ("backward", 2 * layer.features))
    return tuple(Message(direction, "all_reduce", 1, values, 8) for direction, values in sums)


def summed_batch_norm(layer: Any, x: Any, at: Position) -> Tensor:
    """Batch norm whose statistics are summed over the ranks' tiles or samples, beside what data parallelism sums."""
    layer.require(x)
    if not layer.training:
        mean, variance = layer.running_mean, layer.running_var
        return ops.batch_norm(x, layer.weight, layer.bias, eps=layer.eps, mean=mean, variance=variance)

    def total(sums: np.ndarray) -> np.ndarray:
        of_ranks = at.combine(sums)
        return of_ranks if layer.total is None else layer.total(of_ranks)

    def observe(mean: np.ndarray, variance: np.ndarray, count: int) -> None:
        layer.observe(x, mean, variance, count)

    return ops.synchronized_batch_norm(x, layer.weight, layer.bias, total=total, eps=layer.eps, observe=observe)

"""Branches: whole branches for ranks (towers), or every rank's part of every branch, made whole where they join."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.mesh import Partial, Replicated, Shard, even
from parallel_dl.splits.rule import Division, Ending, Position, Site, rule


# -- each rank has some of the branches ----------------------------------------------------------------------------
@rule(nn.Branches, "towers")
def towers(site: Site) -> Division:
    """Each rank runs some of the branches, and no other; they meet where they are joined."""
    module = site.layer
    owners = tuple(rank for rank, count in enumerate(even(len(module), site.ranks)) for _ in range(count))
    local = _OfTowers(owners)
    if module.join == "sum":
        return Division(site.on(Partial()), site.on(Replicated()), local=local, owners=owners)
    widths = [0] * site.ranks
    for branch, owner in zip(module._modules.values(), owners):
        widths[owner] += nn.output_shape(branch, site.x)[0]
    return Division(site.on(Shard(1, tuple(widths))), site.on(Replicated()), local=local, owners=owners)


def on_one(layer: nn.Module, owner: int, site: Site) -> Division:
    """A layer inside of a branch that one rank has: the others have none of its weights."""
    if isinstance(layer, nn.Branches):
        return Division(site.invariant)
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    shapes |= {name: array.shape for name, array in layer.named_buffers()}
    weights = {
        name: site.on(Shard(0, tuple(shape[0] * (rank == owner) for rank in range(site.ranks))))
        for name, shape in shapes.items()
        if shape
    }
    return Division(site.invariant, weights=weights)


@dataclass(frozen=True)
class _OfTowers:
    """The summand, or the slice along axis 1, that a rank's branches make; without a branch zeros, or nothing."""

    owners: tuple[int, ...]
    """by branch: the rank that runs it"""

    def __call__(self, layer: Any, x: Any, at: Position) -> Any:
        names = list(layer._modules)
        outputs = [layer.call(name, x) for name, owner in zip(names, self.owners) if owner == at.rank]
        if not outputs:
            channels = 0 if layer.join == "concatenate" else at.output[0]
            dtype = np.result_type(x.dtype, layer.path("")[1].dtype)
            return Tensor(np.zeros((x.shape[0], channels, *at.output[1:]), dtype))
        if layer.join == "concatenate":
            return ops.concatenate(*outputs, axis=1)
        total = functools.reduce(ops.add, outputs)
        return total if isinstance(total, Tensor) else Tensor(total)  # an Identity alone, on the network's input


# -- every rank has its part of every branch -----------------------------------------------------------------------
def joined(site: Site, endings: Sequence[Ending]) -> Division:
    """All ranks run all branches; where their ends are not alike they are made whole, and joined."""
    after = endings[0].placement
    alike = all(ending.placement == after for ending in endings)
    if alike and not (site.layer.join == "concatenate" and after.shard(1) is not None):
        return Division(after)
    return Division(site.invariant, local=_Joined(tuple(endings)), endings=tuple(endings))


@dataclass(frozen=True)
class _Joined:
    endings: tuple[Ending, ...]

    def __call__(self, layer: Any, x: Any, at: Position) -> Any:
        outputs = [at.reshard(end.path, layer.call(name, x)) for name, end in zip(layer._modules, self.endings)]
        layer.joined_shape(x, [output.shape for output in outputs])
        if layer.join == "concatenate":
            return ops.concatenate(*outputs, axis=1)
        return functools.reduce(ops.add, outputs)

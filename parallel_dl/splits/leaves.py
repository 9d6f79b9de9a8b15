"""Splits of a network that computes in leaves (`parallel_dl.reproducible`): all that this package knows of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.splits.rule import ANYWHERE, Cutting, ways_of
from parallel_dl.splits.way import Way


class BetweenLeaves(Cutting):
    """Between leaves only. Sums over ranks are then made in all-reduces and reduce-scatters alone."""

    may_overlap = False

    def sizes(self, layer: Any, dimension: str, ranks: int) -> tuple[int, ...]:
        leaves = getattr(layer, "leaves", None)
        return super().sizes(layer, dimension, ranks) if leaves is None else getattr(leaves, dimension).of_ranks(ranks)

    def require(self, layer: nn.Module, name: str, way: Way) -> None:
        if way.cuts_image or way.name in ("towers", "samples"):
            valid = [other for other in ways_of(layer) if other in ("filters", "channels")]
            raise InputError(
                f"`split` {name}={way}: `reproducible` divides only channels and features; "
                f"valid for {name}: {', '.join(valid) or 'none'}"
            )


def computes_in_leaves(layers: Iterable[nn.LayerShape]) -> bool:
    """Whether any of the layers does."""
    return any(getattr(passed.layer, "leaves", None) is not None for passed in layers)


def cutting_of(layers: Iterable[nn.LayerShape]) -> Cutting:
    """Where a network of these layers may be cut."""
    return BetweenLeaves() if computes_in_leaves(layers) else ANYWHERE


def default_between_leaves(layers: Iterable[nn.LayerShape], towers: int) -> dict[str, str]:
    """The default splits: convolutions in pairs, too, or all by filters if there are towers."""
    pairs = itertools.cycle(("output", "input") if towers == 1 else ("output",))
    splits = {}
    for passed in layers:
        if isinstance(passed.layer, nn.Conv2d):
            splits[passed.name] = {"output": "filters", "input": "channels"}[next(pairs)]
        elif isinstance(passed.layer, nn.Linear) and len(passed.input) == 1:
            splits[passed.name] = next(pairs)
    return splits

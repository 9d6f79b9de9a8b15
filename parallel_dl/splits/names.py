"""Names: which layer is split in which way, from what somebody has written; what cannot be is refused."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping

from parallel_dl import nn
from parallel_dl.errors import InputError, cut, number_of, one_of, shown
from parallel_dl.splits.rule import can, ways_of
from parallel_dl.splits.way import Way, nearest

GROUPS = ("features", "classifier")  # the layers before the first Flatten, and the others, where no layer is so named


def resolve(splits: Mapping[str, str], shapes: Mapping[str, nn.LayerShape], ranks: int) -> dict[str, Way]:
    """Name of a layer -> its way; a layer's own counts more than that of a group it is in."""
    layers = {name: passed.layer for name, passed in shapes.items()}
    of_groups: dict[str, Way] = {}
    own: dict[str, Way] = {}
    for name, text in sorted(splits.items(), key=lambda split: str(split[0]).count(".")):  # inner groups count more
        if not isinstance(name, str):
            raise InputError(f"`split` {shown(name)}={cut(text)}: the name of a layer is a string, like '0' or 'fc1'")
        way, members = Way.parse(text), _members(name, layers)
        if name in layers and (not members or (way is not None and can(layers[name], way))):
            own[name] = _own_way(name, text, layers, ranks)
        elif members:
            of_groups |= _group_ways(name, text, {member: layers[member] for member in members}, ranks)
        else:
            raise InputError(_unknown(name, text, layers))
    return of_groups | own


def _group_ways(name: str, text: str, members: Mapping[str, nn.Module], ranks: int) -> dict[str, Way]:
    """The way of each layer in a group that can be split by it. Pooling follows the convolutions."""
    way = Way.parse(text)
    weighted: dict[str, nn.Module] = {
        member: layer
        for member, layer in members.items()
        if not isinstance(layer, nn.Branches) and next(layer.named_parameters(), None) is not None
    }
    if way is not None and way.name == "samples":  # also of what normalizes, and of the user's own layers
        weighted = {member: layer for member, layer in members.items() if ways_of(layer)}
    able = [member for member, layer in weighted.items() if way is not None and can(layer, way)]
    if not able or way is None:
        valid = sorted({other for layer in weighted.values() for other in ways_of(layer)})
        choice = one_of(valid) if valid else "none of its layers can be"
        raise InputError(f"`split` {name}={cut(text)}: {name} has no layer that can be split that way; {choice}")
    _require_grid(name, way, ranks)
    return dict.fromkeys(able, way)


def _own_way(name: str, text: str, layers: Mapping[str, nn.Module], ranks: int) -> Way:
    layer, way = layers[name], Way.parse(text)
    valid, kind = ways_of(layer), type(layer).__name__
    if valid == ("samples",) and (way is None or not can(layer, way)):
        earlier = itertools.takewhile(lambda other: other != name, layers)
        before = [other for other in earlier if len(ways_of(layers[other])) > 1]
        near = f", or {before[-1]}={nearest(text, ways_of(layers[before[-1]]))} before it" if before else ""
        raise InputError(
            f"`split` {name}={cut(text)}: {_a(kind)} follows its input's placement; use {name}=samples{near}"
        )
    if way is None or not can(layer, way):
        kind = f"{kind} of {layer.groups} groups" if isinstance(layer, nn.Conv2d) and layer.groups > 1 else kind
        raise InputError(
            f"`split` {name}={cut(text)}: {_a(kind)} cannot be split that way; "
            f"did you mean {name}={nearest(text, valid)}? {one_of(valid)}"
        )
    _require_grid(name, way, ranks)
    return way


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


def _require_grid(name: str, way: Way, ranks: int) -> None:
    if way.grid is not None and math.prod(way.grid) != ranks:
        near = f"{ranks}x1"
        raise InputError(
            f"`split` {name}={way}: {way.grid[0]} x {way.grid[1]} tiles do not fit {number_of(ranks, 'rank')}; "
            f"use rows, columns, rows-columns or a product like {near}"
        )


def _members(name: str, layers: Mapping[str, nn.Module]) -> list[str]:
    """The layers in the Sequential or Branches of this name, or in a group."""
    inside = [layer for layer in layers if layer.startswith(f"{name}.")]
    if inside or name in layers or name not in GROUPS:
        return inside
    names = list(layers)
    flat = next((at for at, layer in enumerate(layers.values()) if isinstance(layer, nn.Flatten)), None)
    if flat is None:
        return []
    return names[:flat] if name == "features" else names[flat:]


def _unknown(name: str, text: str, layers: Mapping[str, nn.Module]) -> str:
    able = [layer for layer, module in layers.items() if len(ways_of(module)) > 1]
    able += [group for group in GROUPS if any(ways_of(layers[layer]) for layer in _members(group, layers))]
    close = difflib.get_close_matches(name, able, 1)
    suggestion = f"did you mean {close[0]}? " if close else ""
    return f"`split` {cut(name)}={cut(text)}: there is no layer {cut(name)}; {suggestion}{one_of(able)}"

"""What each way does with each kind of layer: one rule per kind, a layer in its place to its division.

`parallel_dl.model_parallel.network` has the layer that carries out each of these divisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallel_dl import nn
from parallel_dl.nn.shapes import OneSample, kind_among
from parallel_dl.splits.moves import AllReduce, Message, Moves, Pick, Take, to_channels, to_split, to_whole
from parallel_dl.splits.placement import Grid, Placement, Shape, Sliced, Tiled, Whole, even, slices
from parallel_dl.splits.tiles import Tiling
from parallel_dl.splits.ways import Way

Piece = tuple[slice, ...]
"""slices of the first axes of a weight"""


@dataclass(frozen=True)
class Channels:
    """For each rank: the channels of the result that it makes, and those of the input that they depend on."""

    own: tuple[slice, ...]
    seen: tuple[slice, ...]


@dataclass(frozen=True)
class Division:
    """How one layer is done by the ranks together."""

    arrive: Moves
    after: Placement
    depart: Moves = ()
    made: Placement | None = None
    """where the result is before it departs; None if it is the same as `after`"""
    pieces: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    """attribute of the layer -> which part of it each rank has; what is not named, all of them have in full"""
    summed: bool = False
    """each rank's gradients of the weights are summands"""
    detail: Tiling | Channels | tuple[int, ...] | None = None
    """what the layer itself has to know; of Branches the rank of each branch"""
    messages: tuple[Message, ...] = ()
    """what every rank sends beside the moves, whatever the number of samples"""


@dataclass(frozen=True)
class Site:
    """A layer's place in the network: what it gets and gives (shapes of one sample), and the number of ranks."""

    layer: Any
    way: Way | None
    before: Placement
    x: Shape
    y: Shape
    ranks: int
    next_way: str | None = None
    """the way of the next layer that has weights"""
    in_leaves: bool = False
    """whether the network computes in leaves: then sums over ranks are made in all-reduces and reduce-scatters alone"""

    def whole(self, replicated: bool = True) -> Moves:
        """The moves that bring all of x to every rank."""
        return to_whole(self.before, self.ranks, replicated)

    @property
    def batch(self) -> OneSample:
        """x as a layer's own methods take it."""
        return OneSample(self.x)

    def even(self, dimension: str) -> tuple[int, ...]:
        """The even sizes by rank of the layer's "inputs" or "outputs", its features or channels.

        A layer that computes in leaves is cut between leaves only.
        """
        leaves = getattr(self.layer, "leaves", None)
        if leaves is not None:
            return getattr(leaves, dimension).of_ranks(self.ranks)
        channels = isinstance(self.layer, nn.Conv2d)
        names = {"inputs": "in_channels", "outputs": "out_channels"} if channels else {}
        names = names or {"inputs": "in_features", "outputs": "out_features"}
        return even(getattr(self.layer, names[dimension]), self.ranks)

    def along(self, sizes: tuple[int, ...], *names: str) -> dict[str, tuple[Piece, ...]]:
        """Pieces of these sizes along the first axis of those attributes that the layer has."""
        pieces = tuple((part,) for part in slices(sizes))
        return {name: pieces for name in names if getattr(self.layer, name) is not None}


def _follow(site: Site) -> Division:
    """Element by element: as it comes."""
    return Division((), site.before)


def _gathered(site: Site) -> Division:
    """What needs all of it: on every rank the same."""
    return Division(site.whole(), Whole())


def _linear(site: Site) -> Division:
    layer, way = site.layer, site.way
    if way is None:
        return _gathered(site)
    if len(site.x) > 1:
        return _linear_of_rows(site, way)
    if way.name == "output":
        sizes = site.even("outputs")
        return Division(site.whole(replicated=False), Sliced(sizes), pieces=site.along(sizes, "weight", "bias"))
    sizes = site.before.sizes if isinstance(site.before, Sliced) else site.even("inputs")
    rows = slice(0, layer.out_features)
    pieces = {"weight": tuple((rows, columns) for columns in slices(sizes))}
    return Division(to_split(site.before, sizes), Whole(), (AllReduce(Grid(site.ranks, 1), "model"),), pieces=pieces)


def _linear_of_rows(site: Site, way: Way) -> Division:
    """For (samples, ..., features): slices of the last axis, which no other layer takes: input and output are whole."""
    last, all_ranks = len(site.x), Grid(site.ranks, 1)
    if way.name == "output":
        made = Sliced(site.even("outputs"), last)
        depart = to_whole(made, site.ranks, replicated=True)
        pieces = site.along(made.sizes, "weight", "bias")
        return Division(site.whole(replicated=False), Whole(), depart, made, pieces)
    sizes = site.even("inputs")
    arrive = (*site.whole(), Take(all_ranks, "model", last, sizes, slices(sizes)))
    rows = slice(0, site.layer.out_features)
    weight = tuple((rows, columns) for columns in slices(sizes))
    return Division(arrive, Whole(), (AllReduce(all_ranks, "model"),), pieces={"weight": weight})


def _convolution(site: Site) -> Division:
    layer, way = site.layer, site.way
    if way is None:
        return _tiled(site) if isinstance(site.before, Tiled) else _gathered(site)
    if way.cuts_image:
        return _tiled(site)
    if way.name == "channels":
        sizes = site.before.sizes if isinstance(site.before, Sliced) else site.even("inputs")
        filters = slice(0, layer.out_channels)
        pieces = {"weight": tuple((filters, channels) for channels in slices(sizes))}
        return Division(
            to_split(site.before, sizes), Whole(), (AllReduce(Grid(site.ranks, 1), "model"),), pieces=pieces
        )
    per_group, seen_per_group = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    if way.name == "towers":
        sizes = tuple(towers * per_group for towers in even(layer.groups, site.ranks))
    else:
        sizes = site.even("outputs")
    own, seen = slices(sizes), []
    for filters in own:
        first, last = (0, 0) if filters.start == filters.stop else (filters.start, filters.stop)
        groups = first // per_group if per_group else 0, -(-last // per_group) if per_group else 0
        seen.append(slice(groups[0] * seen_per_group, groups[1] * seen_per_group))
    if layer.groups == 1:
        arrive = site.whole(replicated=False)
        seen = [slice(0, layer.in_channels)] * site.ranks
    elif site.in_leaves and not (isinstance(site.before, Sliced) and list(slices(site.before.sizes)) == seen):
        # gradients of channels that several ranks see are to be added up by one all-reduce
        arrive = (*site.whole(replicated=False), Pick(Grid(site.ranks, 1), "model", tuple(seen)))
    else:
        arrive = to_channels(site.before, tuple(seen))
    by_filter = site.along(sizes, "weight", "bias")
    return Division(arrive, Sliced(sizes), pieces=by_filter, detail=Channels(own, tuple(seen)))


def _tiled(site: Site) -> Division:
    """A convolution whose image is cut: every rank has all weights, and gradients from its own tile."""
    geometry = site.layer.geometry(site.batch)
    tiling = Tiling.of(geometry.vertical, geometry.horizontal, _grid(site))
    return Division(tiling.arrive(site.before, site.x), tiling.after, summed=True, detail=tiling)


def _grid(site: Site) -> Grid:
    if site.way is not None:
        return site.way.on(site.ranks)
    assert isinstance(site.before, Tiled)
    return site.before.grid


def _pooling(site: Site) -> Division:
    if site.way is None and not isinstance(site.before, Tiled):
        return _follow(site)  # each channel by itself
    vertical, horizontal = site.layer.windows(site.batch)
    tiling = Tiling.of(vertical, horizontal, _grid(site))
    return Division(tiling.arrive(site.before, site.x), tiling.after, detail=tiling)


def _global_pooling(site: Site) -> Division:
    """The tiles' sums are added up."""
    if isinstance(site.before, Tiled):
        return Division((), Whole(), (AllReduce(Grid(site.ranks, 1), "model"),))
    return _follow(site)


def _response_norm(site: Site) -> Division:
    """A window of channels reaches over to the neighbours' channels, but not into another tower."""
    if not isinstance(site.before, Sliced):
        return _follow(site)
    layer, sizes = site.layer, site.before.sizes
    width = site.x[0] // layer.groups
    seen = []
    for own in slices(sizes):
        if own.start == own.stop:
            seen.append(slice(0, 0))
            continue
        first_tower, last_tower = own.start // width, (own.stop - 1) // width
        first = max(own.start - layer.size // 2, first_tower * width)
        last = min(own.stop + (layer.size - 1) // 2, (last_tower + 1) * width)
        # backward needs what the windows around the neighbours hold: the adjoint sends it back, nothing more is needed
        seen.append(slice(first, last))
    if site.in_leaves and tuple(seen) != slices(sizes):
        return _gathered(site)
    return Division(to_channels(site.before, tuple(seen)), site.before, detail=Channels(slices(sizes), tuple(seen)))


def _batch_norm(site: Site) -> Division:
    if isinstance(site.before, Sliced):
        names = ("weight", "bias", "running_mean", "running_var")
        return Division((), site.before, pieces=site.along(site.before.sizes, *names))
    if isinstance(site.before, Tiled):
        # in float64: the values and their number, then the squares; backward two sums
        features = site.layer.features
        sums = (("forward", features + 1), ("forward", features), ("backward", 2 * features))
        messages = tuple(Message(direction, "all_reduce", 1, 0, values, 8) for direction, values in sums)
        return Division((), site.before, summed=True, messages=messages)
    return _follow(site)


def _flatten(site: Site) -> Division:
    """Slices of channels become slices of features; tiles become them where the next layer wants them."""
    before = site.before
    arrive: Moves = ()
    if isinstance(before, Tiled) and site.next_way == "input":
        channels = even(site.x[0], site.ranks)
        before, arrive = Sliced(channels), to_split(before, channels)
    if isinstance(before, Sliced):
        rest = site.y[0] // max(1, site.x[0])
        return Division(arrive, Sliced(tuple(size * rest for size in before.sizes)))
    return _gathered(site)


RULES: dict[type[nn.Module], Callable[[Site], Division]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.GlobalAvgPool2d: _global_pooling,
    nn.LocalResponseNorm: _response_norm,
    nn.Flatten: _flatten,
    nn.LayerNorm: _gathered,
    **dict.fromkeys((nn.BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    **dict.fromkeys((nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Dropout, nn.Identity), _follow),
}


def divide(site: Site, name: str) -> Division:
    """How the layer called `name` is done in this place: one of the user's own by every rank, with all weights."""
    kind = kind_among(site.layer, RULES)
    return _gathered(site) if kind is None else RULES[kind](site)

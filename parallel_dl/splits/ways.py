"""The ways to split a layer, by name, and what each does with each kind of layer.

`fc1=output` and `fc1=input` are the survey's words for a fully connected layer (Megatron's column and row), `filters`
and `channels` the same for a convolution; `rows`, `columns` and `rows-columns` cut the image, `towers` gives whole
branches to ranks. A layer without a way of its own follows: it works on what it gets, or has it gathered if it cannot.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallel_dl import nn
from parallel_dl.convolution.geometry import Axis
from parallel_dl.nn.shapes import require_kind
from parallel_dl.splits.moves import AllReduce, Message, Moves, to_channels, to_split, to_tiles, to_whole
from parallel_dl.splits.placement import Grid, Placement, Shape, Split, Tiles, Whole, even, near_square, slices

ALIASES = {"column": "output", "row": "input", "grid": "rows-columns"}
_GRID = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")  # 2x3: two rows of three tiles

Piece = tuple[slice, ...]
"""slices of the first axes of a weight"""


@dataclass(frozen=True)
class Way:
    """How one layer is split: `name`, and with `ending` "split" or "whole" what is to become of its output."""

    name: str
    ending: str | None = None
    grid: Grid | None = None

    @classmethod
    def parse(cls, text: str) -> Way | None:
        """From "output", "output:whole", "output:split", "2x2", ...; None for what is no way."""
        name, *ending = str(text).split(":")
        name = ALIASES.get(name, name)
        if len(ending) > 1 or (ending and (ending[0] not in ("split", "whole") or name not in LEFT_SPLIT)):
            return None
        if found := _GRID.fullmatch(name):
            return cls(name, grid=Grid(int(found[1]), int(found[2])))
        return cls(name, ending[0] if ending else None) if name in NAMES else None

    def __str__(self) -> str:
        return f"{self.name}:{self.ending}" if self.ending else self.name

    def on(self, ranks: int) -> Grid:
        """The grid of the ranks for a way that cuts the image."""
        if self.grid is not None:
            return self.grid
        return {"rows": Grid(ranks, 1), "columns": Grid(1, ranks)}.get(self.name) or near_square(ranks)

    @property
    def cuts_image(self) -> bool:
        """Whether it is rows, columns, rows-columns or 2x3."""
        return self.grid is not None or self.name in IMAGE


IMAGE = ("rows", "columns", "rows-columns")
LEFT_SPLIT = ("output", "filters", "towers")  # those that leave the features or channels split
NAMES = ("output", "input", "filters", "channels", "towers", *IMAGE)

# kind of layer -> the ways it can be split
WAYS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("output", "input"),
    nn.Conv2d: ("filters", "channels", *IMAGE),
    nn.MaxPool2d: IMAGE,
    nn.AvgPool2d: IMAGE,
    nn.Branches: ("towers",),
}
# what somebody who wrote this will have meant
_MEANT = {
    "output": ("filters", "towers"),
    "input": ("channels",),
    "filters": ("output", "towers"),
    "channels": ("input", "filters"),
    "towers": ("filters", "output"),
}


def ways_of(layer: nn.Module) -> tuple[str, ...]:
    """The names of the ways in which this layer can be split; none for a layer that follows."""
    for kind in type(layer).__mro__:
        if kind in WAYS:
            ways = WAYS[kind]
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # each filter sees its own tower's channels only
                return "filters", "towers", *IMAGE
            return ways
    return ()


def nearest(text: str, valid: tuple[str, ...]) -> str:
    """Of the valid ways the one that is most likely meant."""
    name = text.split(":")[0]
    for meant in _MEANT.get(ALIASES.get(name, name), ()):
        if meant in valid:
            return meant
    close = difflib.get_close_matches(name, valid, 1, 0.4)
    return close[0] if close else valid[0]


@dataclass(frozen=True)
class Window:
    """Along one axis of the image: the rows of the result that a line of the grid makes, and what it needs for them."""

    out: slice
    image: slice
    """rows of the image that lie under them"""
    before: int
    """rows of zeros before those"""
    after: int
    """rows of zeros behind those"""

    @property
    def length(self) -> int:
        """How many rows of the result."""
        return self.out.stop - self.out.start


def windows(axis: Axis, sizes: tuple[int, ...]) -> tuple[Window, ...]:
    """What each line of the grid needs to make `sizes` rows of a convolution's, or a pooling's, result."""
    found = []
    for out in slices(sizes):
        if out.start == out.stop:
            found.append(Window(out, slice(0, 0), 0, 0))
            continue
        start = out.start * axis.stride - axis.before
        stop = (out.stop - 1) * axis.stride - axis.before + axis.extent
        first = min(max(start, 0), axis.length)
        last = max(min(stop, axis.length), first)
        before = min(max(-start, 0), stop - start)
        found.append(Window(out, slice(first, last), before, stop - start - before - (last - first)))
    return tuple(found)


@dataclass(frozen=True)
class Tiling:
    """The windows of each row and of each column of the grid."""

    grid: Grid
    vertical: tuple[Window, ...]
    horizontal: tuple[Window, ...]

    @classmethod
    def of(cls, vertical: Axis, horizontal: Axis, grid: Grid) -> Tiling:
        """For even tiles of the result."""
        rows, columns = even(vertical.out, grid.rows), even(horizontal.out, grid.columns)
        return cls(grid, windows(vertical, rows), windows(horizontal, columns))

    def at(self, rank: int) -> tuple[Window, Window]:
        """(vertical, horizontal) of one rank."""
        return self.vertical[self.grid.index(rank, "rows")], self.horizontal[self.grid.index(rank, "columns")]

    def arrive(self, before: Placement, image: Shape) -> Moves:
        """The moves that bring each rank what it needs."""
        rows, columns = (tuple(window.image for window in line) for line in (self.vertical, self.horizontal))
        return to_tiles(before, image, self.grid, rows, columns)

    @property
    def after(self) -> Tiles:
        """Where the result is."""
        rows, columns = (tuple(window.length for window in line) for line in (self.vertical, self.horizontal))
        return Tiles(rows, columns)


@dataclass(frozen=True)
class Filters:
    """For each rank: its filters, and the input channels that they see."""

    own: tuple[slice, ...]
    seen: tuple[slice, ...]


@dataclass(frozen=True)
class Part:
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
    detail: Any = None
    """what the layer itself has to know: Tiling, Filters or, for response normalisation, the channels it sees"""
    messages: tuple[Message, ...] = ()
    """what every rank sends beside the moves, whatever the number of samples"""


@dataclass(frozen=True)
class OneSample:
    """A batch of one sample, as far as layers look at it."""

    shape: Shape


@dataclass(frozen=True)
class Place:
    """A layer's place in the network: what it gets and gives (shapes of one sample), and the number of ranks."""

    layer: Any
    way: Way | None
    before: Placement
    x: Shape
    y: Shape
    ranks: int
    next_way: str | None = None
    """the way of the next layer that has weights"""

    def whole(self, replicated: bool = True) -> Moves:
        """The moves that bring all of x to every rank."""
        return to_whole(self.before, self.ranks, replicated)

    @property
    def batch(self) -> OneSample:
        """x as a layer's own methods take it."""
        return OneSample((1, *self.x))

    def along(self, sizes: tuple[int, ...], *names: str) -> dict[str, tuple[Piece, ...]]:
        """Pieces of these sizes along the first axis of those attributes that the layer has."""
        pieces = tuple((part,) for part in slices(sizes))
        return {name: pieces for name in names if getattr(self.layer, name) is not None}


def _follow(place: Place) -> Part:
    """Element by element: as it comes."""
    return Part((), place.before)


def _gathered(place: Place) -> Part:
    """What needs all of it: on every rank the same."""
    return Part(place.whole(), Whole())


def _linear(place: Place) -> Part:
    layer, way = place.layer, place.way
    if way is None:
        return _gathered(place)
    if way.name == "output":
        sizes = even(layer.out_features, place.ranks)
        return Part(place.whole(replicated=False), Split(sizes), pieces=place.along(sizes, "weight", "bias"))
    sizes = place.before.sizes if isinstance(place.before, Split) else even(layer.in_features, place.ranks)
    rows = slice(0, layer.out_features)
    pieces = {"weight": tuple((rows, columns) for columns in slices(sizes))}
    return Part(to_split(place.before, sizes), Whole(), (AllReduce(Grid(place.ranks, 1), "model"),), pieces=pieces)


def _convolution(place: Place) -> Part:
    layer, way = place.layer, place.way
    if way is None:
        return _tiled(place) if isinstance(place.before, Tiles) else _gathered(place)
    if way.cuts_image:
        return _tiled(place)
    if way.name == "channels":
        sizes = place.before.sizes if isinstance(place.before, Split) else even(layer.in_channels, place.ranks)
        filters = slice(0, layer.out_channels)
        pieces = {"weight": tuple((filters, channels) for channels in slices(sizes))}
        return Part(to_split(place.before, sizes), Whole(), (AllReduce(Grid(place.ranks, 1), "model"),), pieces=pieces)
    per_group, seen_per_group = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    if way.name == "towers":
        sizes = tuple(towers * per_group for towers in even(layer.groups, place.ranks))
    else:
        sizes = even(layer.out_channels, place.ranks)
    own, seen = slices(sizes), []
    for filters in own:
        first, last = (0, 0) if filters.start == filters.stop else (filters.start, filters.stop)
        groups = first // per_group if per_group else 0, -(-last // per_group) if per_group else 0
        seen.append(slice(groups[0] * seen_per_group, groups[1] * seen_per_group))
    if layer.groups == 1:
        arrive = place.whole(replicated=False)
        seen = [slice(0, layer.in_channels)] * place.ranks
    else:
        arrive = to_channels(place.before, tuple(seen))
    by_filter = place.along(sizes, "weight", "bias")
    return Part(arrive, Split(sizes), pieces=by_filter, detail=Filters(own, tuple(seen)))


def _tiled(place: Place) -> Part:
    """A convolution whose image is cut: every rank has all weights, and gradients from its own tile."""
    geometry = place.layer.geometry(place.batch)
    tiling = Tiling.of(geometry.vertical, geometry.horizontal, _grid(place))
    return Part(tiling.arrive(place.before, place.x), tiling.after, summed=True, detail=tiling)


def _grid(place: Place) -> Grid:
    if place.way is not None:
        return place.way.on(place.ranks)
    assert isinstance(place.before, Tiles)
    return place.before.grid


def _pooling(place: Place) -> Part:
    if place.way is None and not isinstance(place.before, Tiles):
        return _follow(place)  # each channel by itself
    vertical, horizontal = place.layer.windows(place.batch)
    tiling = Tiling.of(vertical, horizontal, _grid(place))
    return Part(tiling.arrive(place.before, place.x), tiling.after, detail=tiling)


def _global_pooling(place: Place) -> Part:
    """The tiles' sums are added up."""
    if isinstance(place.before, Tiles):
        return Part((), Whole(), (AllReduce(Grid(place.ranks, 1), "model"),), detail=place.before)
    return _follow(place)


def _response_norm(place: Place) -> Part:
    """A window of channels reaches over to the neighbours' channels, but not into another tower."""
    if not isinstance(place.before, Split):
        return _follow(place)
    layer, sizes = place.layer, place.before.sizes
    width = place.x[0] // layer.groups
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
    return Part(to_channels(place.before, tuple(seen)), place.before, detail=(slices(sizes), tuple(seen), width))


def _batch_norm(place: Place) -> Part:
    if isinstance(place.before, Split):
        names = ("weight", "bias", "running_mean", "running_var")
        return Part((), place.before, pieces=place.along(place.before.sizes, *names))
    if isinstance(place.before, Tiles):
        # in float64: the values and their number, then the squares; backward two sums
        features = place.layer.features
        sums = (("forward", features + 1), ("forward", features), ("backward", 2 * features))
        messages = tuple(Message(direction, "all_reduce", 1, 0, values, 8) for direction, values in sums)
        return Part((), place.before, summed=True, messages=messages)
    return _follow(place)


def _flatten(place: Place) -> Part:
    """Slices of channels become slices of features; tiles become them where the next layer wants them."""
    before = place.before
    arrive: Moves = ()
    if isinstance(before, Tiles) and place.next_way == "input":
        channels = even(place.x[0], place.ranks)
        before, arrive = Split(channels), to_split(before, channels)
    if isinstance(before, Split):
        rest = place.y[0] // max(1, place.x[0])
        return Part(arrive, Split(tuple(size * rest for size in before.sizes)))
    return _gathered(place)


RULES: dict[type[nn.Module], Callable[[Place], Part]] = {
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


def part_of(place: Place, name: str) -> Part:
    """How the layer called `name` is done in this place; InputError for a kind of layer that is not known."""
    return RULES[require_kind(place.layer, RULES, name)](place)

"""Moves: how an activation gets from one placement to another, as data, with what each rank sends.

`parallel_dl.model_parallel.axis` makes them, with the differentiable collectives of `parallel_dl.mpi`. All ranks
of the communicator `over` (see `Grid.group`) make a move together.

What is counted, per sample: for an all-reduce the values it sums; for an all-gather those a rank gets from the others,
for a reduce-scatter those it gives them, which is (P-1)/P of the whole, as in a ring; for sends those sent.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from parallel_dl.splits.placement import COLUMNS, ROWS, Grid, Placement, Shape, Sliced, Tiled, even, slices

Slices = tuple[slice, ...]


class Message(NamedTuple):
    """What one rank passes to MPI for a microbatch: `call` as the ledger names it, and how many values per sample."""

    direction: str
    """forward or backward"""
    call: str
    messages: int
    values: int
    fixed: int = 0
    """values whatever the number of samples"""
    itemsize: int | None = None
    """bytes of each value; None for those of the network's dtype"""


@dataclass(frozen=True)
class Move:
    """A move; `grid` and `over` say which ranks make it together."""

    grid: Grid
    over: str

    def shape(self, rank: int, x: Shape) -> Shape:
        """What `rank` has of one sample afterwards, when it had `x`."""
        return x

    def messages(self, rank: int, x: Shape) -> Iterator[Message]:
        """What `rank` sends when it has `x` of each sample."""
        yield from ()

    @property
    def ranks(self) -> int:
        """How many make it together."""
        return self.grid.group(self.over)


@dataclass(frozen=True)
class Replicate(Move):
    """What is the same on all ranks is from here on used differently by each: its gradients are summed."""

    def messages(self, rank: int, x: Shape) -> Iterator[Message]:
        yield Message("backward", "all_reduce", 1, math.prod(x))


@dataclass(frozen=True)
class AllReduce(Move):
    """The ranks' summands are added up."""

    def messages(self, rank: int, x: Shape) -> Iterator[Message]:
        yield Message("forward", "all_reduce", 1, math.prod(x))


@dataclass(frozen=True)
class Along(Move):
    """A move along one array axis, of which rank r had `sizes[r]`."""

    axis: int
    sizes: tuple[int, ...]

    def row(self, x: Shape) -> int:
        """Values in one row of that axis."""
        return math.prod(x[: self.axis - 1]) * math.prod(x[self.axis :])

    def with_length(self, x: Shape, length: int) -> Shape:
        """The shape with another length there."""
        return (*x[: self.axis - 1], length, *x[self.axis :])

    def of_others(self, rank: int, x: Shape) -> int:
        """Values that the other ranks have."""
        return self.row(x) * (sum(self.sizes) - self.sizes[self.grid.index(rank, self.over)])


@dataclass(frozen=True)
class Gather(Along):
    """The slices are concatenated on every rank, and from here on used differently by each."""

    def shape(self, rank: int, x: Shape) -> Shape:
        return self.with_length(x, sum(self.sizes))

    def messages(self, rank: int, x: Shape) -> Iterator[Message]:
        yield Message("forward", "all_gather", 1, self.of_others(rank, x))
        yield Message("backward", "reduce_scatter", 1, self.of_others(rank, x))


@dataclass(frozen=True)
class Unshard(Gather):
    """The slices are concatenated on every rank, and from here on used in the same way by all."""

    def messages(self, rank: int, x: Shape) -> Iterator[Message]:
        yield Message("forward", "all_gather", 1, self.of_others(rank, x))


@dataclass(frozen=True)
class Exchange(Along):
    """Each rank gets the rows `wanted[rank]` from the ranks that have them."""

    wanted: Slices

    def shape(self, rank: int, x: Shape) -> Shape:
        wanted = self.wanted[self.grid.index(rank, self.over)]
        return self.with_length(x, wanted.stop - wanted.start)

    @cached_property
    def rows_sent(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """By rank: (messages, rows in them), forward and backward. Each row that is wanted is looked up once."""
        owned = slices(self.sizes)
        starts = [own.start for own in owned]
        forward, backward = ([(0, 0)] * len(owned) for _ in range(2))
        for rank, want in enumerate(self.wanted):
            owner = max(0, bisect.bisect_right(starts, want.start) - 1)
            while owner < len(owned) and starts[owner] < want.stop:
                rows = _common(owned[owner], want)
                if rows and owner != rank:
                    forward[owner] = (forward[owner][0] + 1, forward[owner][1] + rows)
                    backward[rank] = (backward[rank][0] + 1, backward[rank][1] + rows)
                owner += 1
        return list(zip(forward, backward))

    def messages(self, rank: int, x: Shape) -> Iterator[Message]:
        sent = self.rows_sent[self.grid.index(rank, self.over)]
        for direction, (count, rows) in zip(("forward", "backward"), sent):
            if count:
                yield Message(direction, "isend", count, rows * self.row(x))


@dataclass(frozen=True)
class Take(Exchange):
    """Of what is the same on all ranks, each is given the slices of `sizes`, and gets `wanted` from the others.

    The network's input, which has no gradient, is cut on the spot instead.
    """

    def messages(self, rank: int, x: Shape) -> Iterator[Message]:
        own = self.with_length(x, self.sizes[self.grid.index(rank, self.over)])
        if self.wanted != slices(self.sizes):
            yield from super().messages(rank, own)
        yield Message("backward", "all_gather", 1, self.of_others(rank, own))


@dataclass(frozen=True)
class Pick(Move):
    """Each rank keeps the channels `wanted[rank]` of those it has in full: nothing is sent."""

    wanted: Slices

    def shape(self, rank: int, x: Shape) -> Shape:
        wanted = self.wanted[self.grid.index(rank, self.over)]
        return (wanted.stop - wanted.start, *x[1:])


@dataclass(frozen=True)
class AllToAll(Along):
    """From slices along `axis` to slices of `split_sizes` along `split_axis`."""

    split_axis: int
    split_sizes: tuple[int, ...]

    def shape(self, rank: int, x: Shape) -> Shape:
        lengths = list(self.with_length(x, sum(self.sizes)))
        lengths[self.split_axis - 1] = self.split_sizes[rank]
        return tuple(lengths)

    def messages(self, rank: int, x: Shape) -> Iterator[Message]:
        row = math.prod(length for axis, length in enumerate(x, start=1) if axis not in (self.axis, self.split_axis))
        own, mine = self.sizes[rank], self.split_sizes[rank]
        yield Message("forward", "all_to_all", 1, row * own * (sum(self.split_sizes) - mine))
        yield Message("backward", "all_to_all", 1, row * mine * (sum(self.sizes) - own))


def _common(a: slice, b: slice) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


# -- from one placement to another ---------------------------------------------------------------------------------
Moves = tuple[Move, ...]


def to_whole(before: Placement, ranks: int, replicated: bool) -> Moves:
    """To all of it on every rank: used by all in the same way (`replicated`), or by each in its own."""
    kind = Unshard if replicated else Gather
    if isinstance(before, Sliced):
        return (kind(Grid(ranks, 1), "model", before.axis, before.sizes),)
    if isinstance(before, Tiled):
        grid = before.grid
        over_columns = (kind(grid, "columns", COLUMNS, before.columns),) if grid.columns > 1 else ()
        over_rows = (kind(grid, "rows", ROWS, before.rows),) if grid.rows > 1 else ()
        return over_columns + over_rows
    return () if replicated else (Replicate(Grid(ranks, 1), "model"),)


def to_split(before: Placement, sizes: tuple[int, ...]) -> Moves:
    """To slices of these sizes of the features or channels."""
    return to_channels(before, slices(sizes), sizes)


def to_channels(before: Placement, wanted: Slices, shards: tuple[int, ...] | None = None) -> Moves:
    """To any slices of the features or channels: several ranks may want the same ones, unless they are `shards`."""
    ranks = len(wanted)
    grid = Grid(ranks, 1)
    if isinstance(before, Sliced):
        return () if slices(before.sizes) == wanted else (Exchange(grid, "model", 1, before.sizes, wanted),)
    if isinstance(before, Tiled) and shards is not None and before.grid.columns == 1:
        return (AllToAll(grid, "model", ROWS, before.rows, 1, shards),)
    if shards is not None:
        return (*to_whole(before, ranks, replicated=True), Take(grid, "model", 1, shards, wanted))
    return (*to_whole(before, ranks, replicated=False), Pick(grid, "model", wanted))


def to_tiles(before: Placement, whole: Shape, grid: Grid, rows: Slices, columns: Slices) -> Moves:
    """To the image rows and columns that each line of the grid wants; of an image of shape `whole`."""
    ranks = grid.group("model")
    if isinstance(before, Tiled) and before.grid == grid:
        pairs = ((ROWS, before.rows, rows, "rows"), (COLUMNS, before.columns, columns, "columns"))
        return tuple(
            Exchange(grid, over, axis, sizes, wanted) for axis, sizes, wanted, over in pairs if slices(sizes) != wanted
        )
    if isinstance(before, Sliced) and grid.columns == 1:
        given = Tiled(even(whole[1], ranks), (whole[2],))
        return (
            AllToAll(grid, "model", 1, before.sizes, ROWS, given.rows),
            *to_tiles(given, whole, grid, rows, columns),
        )
    moves: list[Move] = list(to_whole(before, ranks, replicated=True))
    for axis, wanted, over in ((ROWS, rows, "rows"), (COLUMNS, columns, "columns")):
        if grid.group(over) > 1 or wanted != (slice(0, whole[axis - 1]),):
            moves.append(Take(grid, over, axis, even(whole[axis - 1], grid.group(over)), wanted))
    return tuple(moves)

"""Tiles of an image: what a rank needs of it to make its tile of a convolution's, or a pooling's, result."""

from __future__ import annotations

from dataclasses import dataclass

from parallel_dl.convolution.geometry import Axis
from parallel_dl.splits.moves import Moves, to_tiles
from parallel_dl.splits.placement import Grid, Placement, Shape, Tiled, even, slices


@dataclass(frozen=True)
class Window:
    """Along one axis of the image: the rows of the result that a line of the grid makes, and what it needs for them."""

    out: slice
    image: slice
    """rows of the image that lie under them"""
    before: int
    """rows of zeros before those"""
    after: int
    """rows of zeros after those"""

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
    def after(self) -> Tiled:
        """Where the result is."""
        rows, columns = (tuple(window.length for window in line) for line in (self.vertical, self.horizontal))
        return Tiled(rows, columns)

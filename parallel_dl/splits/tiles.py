"""Tiles of an image: what a rank needs of it to make its tile of a convolution's, or a pooling's, result."""

from __future__ import annotations

from dataclasses import dataclass

from parallel_dl.convolution.geometry import Axis
from parallel_dl.mesh import MeshShape, Placement, Shape, Shard, Windows, even, slices
from parallel_dl.splits.rule import Site

ROWS, COLUMNS = 2, 3  # the image's axes in (samples, channels, height, width)


@dataclass(frozen=True)
class Window:
    """Along one direction: the rows of the result that a line of the grid makes, and what it needs for them."""

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
    """Which mesh axis cuts which direction of the image, and the windows of each line along it."""

    mesh: MeshShape
    vertical: tuple[Window, ...]
    horizontal: tuple[Window, ...]
    """those of an uncut direction are one, of the whole"""
    lines: tuple[str | None, str | None]
    """the mesh axes that cut (rows, columns); None for a direction that is not cut"""

    @classmethod
    def of(cls, vertical: Axis, horizontal: Axis, site: Site) -> Tiling:
        """Even tiles of the result: cut as the layer's way says, or as its input comes."""
        if site.way is not None:
            mesh = site.way.mesh(site.ranks)
            cut = {"rows": (True, False), "columns": (False, True)}.get(site.way.name)
            if site.way.grid is not None and len(mesh) == 1:
                cut = (site.way.grid[1] == 1, site.way.grid[0] == 1)
            rows, columns = cut or (True, len(mesh) > 1)
        else:
            mesh = site.before.mesh
            rows, columns = (site.before.shard(axis) is not None for axis in (ROWS, COLUMNS))
        names = list(mesh)
        lines = (names[0] if rows else None), (names[-1] if columns else None)
        both = [
            windows(axis, even(axis.out, mesh[line])) if line else (_uncut(axis),)
            for axis, line in zip((vertical, horizontal), lines)
        ]
        return cls(mesh, both[0], both[1], lines)

    def at(self, rank: int) -> tuple[Window, Window]:
        """(vertical, horizontal) of one rank."""
        rows, columns = (self.mesh.index(rank, line) if line else 0 for line in self.lines)
        return self.vertical[rows], self.horizontal[columns]

    @property
    def input(self) -> Placement:
        """What each rank needs: the image under its tile."""
        return self._placement(*(tuple(w.image for w in cut) for cut in (self.vertical, self.horizontal)))

    @property
    def output(self) -> Placement:
        """Where the result is."""
        states = {
            line: Shard(axis, tuple(window.length for window in cut))
            for line, axis, cut in zip(self.lines, (ROWS, COLUMNS), (self.vertical, self.horizontal))
            if line
        }
        return Placement.on(self.mesh, **states)

    def _placement(self, rows: tuple[slice, ...], columns: tuple[slice, ...]) -> Placement:
        states = {
            line: Windows(axis, wanted)
            for line, axis, wanted in zip(self.lines, (ROWS, COLUMNS), (rows, columns))
            if line
        }
        return Placement.on(self.mesh, **states)

    def counted(self, rank: int, image: Shape) -> Shape:
        """The rows and columns of the image that count for `rank`: in proportion to those of the result."""
        lengths = []
        for line, cut, length in zip(self.lines, (self.vertical, self.horizontal), image[1:]):
            window, total = cut[self.mesh.index(rank, line) if line else 0].out, cut[-1].out.stop
            lengths.append(length * window.stop // total - length * window.start // total)
        return image[0], *lengths


def _uncut(axis: Axis) -> Window:
    """The whole direction, with the padding that the layer itself makes."""
    return Window(slice(0, axis.out), slice(0, axis.length), axis.before, axis.after)


def is_tiled(placement: Placement) -> bool:
    """Whether the image is cut."""
    return placement.shard(ROWS) is not None or placement.shard(COLUMNS) is not None

"""Placements: what each rank of the model axis has of an activation (samples, ...).

Everything here is arithmetic on shapes; nothing needs MPI. Axes are those of the array, samples being axis 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from parallel_dl import partition

Shape = tuple[int, ...]
ROWS, COLUMNS = 2, 3  # the image's axes in (samples, channels, height, width)


@dataclass(frozen=True)
class Whole:
    """Every rank has all of it, the same."""

    def shape(self, rank: int, whole: Shape) -> Shape:
        """What `rank` has of one sample of shape `whole`."""
        return whole


@dataclass(frozen=True)
class Sliced:
    """Each rank has a slice of the features or channels; `sizes` by rank.

    These are along axis 1; only inside a fully connected layer on several axes, (samples, ..., features), are they
    along the last.
    """

    sizes: tuple[int, ...]
    axis: int = 1

    def shape(self, rank: int, whole: Shape) -> Shape:
        """What `rank` has of one sample of shape `whole`."""
        return (*whole[: self.axis - 1], self.sizes[rank], *whole[self.axis :])


@dataclass(frozen=True)
class Tiled:
    """Each rank has a tile of the image; the ranks are a grid, rank = row of the grid * its columns + column.

    `rows` has the image rows of each row of the grid, `columns` the image columns of each of its columns.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def grid(self) -> Grid:
        """The grid of the ranks."""
        return Grid(len(self.rows), len(self.columns))

    def shape(self, rank: int, whole: Shape) -> Shape:
        """What `rank` has of one sample of shape `whole`."""
        row, column = divmod(rank, len(self.columns))
        return whole[0], self.rows[row], self.columns[column]


Placement = Whole | Sliced | Tiled


@dataclass(frozen=True)
class Grid:
    """The ranks of the model axis as rows x columns, columns fastest."""

    rows: int
    columns: int

    def group(self, over: str) -> int:
        """How many ranks a movement `over` takes together: "model" all of them, "rows" or "columns" one line."""
        return {"model": self.rows * self.columns, "rows": self.rows, "columns": self.columns}[over]

    def index(self, rank: int, over: str) -> int:
        """The place of `rank` among those."""
        return {"model": rank, "rows": rank // self.columns, "columns": rank % self.columns}[over]


def near_square(ranks: int) -> Grid:
    """So many ranks as a grid as square as can be, at least as many rows as columns."""
    columns = max(n for n in range(1, int(ranks**0.5) + 1) if ranks % n == 0)
    return Grid(ranks // columns, columns)


def even(length: int, ranks: int) -> tuple[int, ...]:
    """The sizes of even slices, by rank."""
    return tuple(partition.shares(length, ranks))


def slices(sizes: Sequence[int]) -> tuple[slice, ...]:
    """The slices of these sizes, one after the other."""
    return tuple(slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0)))

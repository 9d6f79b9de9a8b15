"""The shape of a mesh: the ranks as a grid with named axes, the last one fastest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from parallel_dl.errors import InputError


class MeshShape(Mapping[str, int]):
    """Name -> size of each mesh axis, in order, the last one fastest: `MeshShape(pipe=2, data=3, model=4)`.

    Ranks that differ only in the last axis are neighbours. Raises InputError for a size below 1.
    """

    __slots__ = ("_sizes",)

    def __init__(self, **sizes: int) -> None:
        self._sizes = sizes
        if min(sizes.values(), default=1) < 1:
            raise InputError(f"mesh {self}: every size is at least 1")

    def __getitem__(self, axis: str) -> int:
        return self._sizes[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MeshShape):
            return list(self._sizes.items()) == list(other._sizes.items())
        return self._sizes == other

    def __hash__(self) -> int:
        return hash(tuple(self._sizes.items()))

    def __str__(self) -> str:
        return " x ".join(f"{axis} {size}" for axis, size in self._sizes.items())

    def __repr__(self) -> str:
        return f"MeshShape({', '.join(f'{axis}={size}' for axis, size in self._sizes.items())})"

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return math.prod(self._sizes.values())

    def coordinates(self, rank: int) -> dict[str, int]:
        """The coordinates of `rank`, by mesh axis."""
        found = {}
        for axis, size in reversed(self._sizes.items()):
            rank, found[axis] = divmod(rank, size)
        return {axis: found[axis] for axis in self._sizes}

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """The rank at these coordinates; mesh axes not named count as 0."""
        rank = 0
        for axis, size in self._sizes.items():
            rank = rank * size + coordinates.get(axis, 0)
        return rank

    def index(self, rank: int, axis: str) -> int:
        """The coordinate of `rank` along one mesh axis."""
        return self.coordinates(rank)[axis]

    def along(self, rank: int, axes: Iterable[str]) -> list[int]:
        """The ranks that differ from `rank` at most along `axes`, in order, including `rank` itself."""
        own, free = self.coordinates(rank), set(axes)
        ranges = [range(size) if axis in free else (own[axis],) for axis, size in self._sizes.items()]
        return [self.rank(dict(zip(self._sizes, place))) for place in itertools.product(*ranges)]

    def refine(self, axis: str, **lines: int) -> MeshShape:
        """The same ranks, with one mesh axis turned into a grid: `refine("model", rows=2, columns=3)`.

        InputError unless the product of the lines is the size of the axis.
        """
        if math.prod(lines.values()) != self._sizes[axis]:
            raise InputError(f"mesh axis {axis} of {self._sizes[axis]} is not {MeshShape(**lines)}")
        return MeshShape(**dict(_refined(self._sizes, axis, lines)))


def _refined(sizes: Mapping[str, int], axis: str, lines: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    for name, size in sizes.items():
        yield from lines.items() if name == axis else ((name, size),)


def near_square(ranks: int) -> tuple[int, int]:
    """(rows, columns) of the most nearly square grid of this many ranks, with at least as many rows as columns."""
    columns = max(n for n in range(1, int(ranks**0.5) + 1) if ranks % n == 0)
    return ranks // columns, columns

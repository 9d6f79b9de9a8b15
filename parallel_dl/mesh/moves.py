"""Moves: one step of an array from state to state along one mesh axis, with its shape, its adjoint and its messages.

| from, to | move              | its adjoint     |   | from, to | move                             | its adjoint      |
|----------|-------------------|-----------------|---|----------|----------------------------------|------------------|
| I, R     | `replicate`       | `all_reduce`    |   | S, S     | `all_to_all`, `exchange_slices`  | the same, back   |
| I, S     | `shard`           | `unshard`       |   | S, W     | `exchange_slices`                | sums at the owner|
| S, I     | `unshard`         | `shard`         |   | P, I     | `all_reduce`                     | `replicate`      |
| S, R     | `all_gather`      | `reduce_scatter`|   | P, S     | `reduce_scatter`                 | `all_gather`     |
| R, S     | `select`          | pads with zeros |   | R, W     | `select`                         | pads with zeros  |

The adjoint of a -> b is dual(b) -> dual(a): it follows, and no flag chooses between two. Most are the differentiable
collectives of `parallel_dl.mpi` of the same name; `select` keeps the own slice and sends nothing either way.

What is counted: for an all-reduce the values it sums; for an all-gather those a rank gets from the others, for a
reduce-scatter those it gives them, which is (P-1)/P of the whole, as in a ring; for sends those sent.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from parallel_dl.mesh.placement import Invariant, Partial, Replicated, Shape, Shard, State, Windows, dual
from parallel_dl.mesh.shape import MeshShape

# (from, to) -> name of the move, where the two array axes need not be compared
NAMES: dict[tuple[type[State], type[State]], str] = {
    (Invariant, Replicated): "replicate",
    (Invariant, Shard): "shard",
    (Shard, Invariant): "unshard",
    (Shard, Replicated): "all_gather",
    (Replicated, Shard): "select",
    (Replicated, Windows): "select",
    (Shard, Windows): "exchange_slices",
    (Partial, Invariant): "all_reduce",
    (Partial, Shard): "reduce_scatter",
    # these are adjoints only
    (Partial, Replicated): "all_reduce",
    (Shard, Partial): "pad",
    (Windows, Partial): "pad",
}


class Message(NamedTuple):
    """What one rank passes to MPI: `call`, named as in the ledger, and the numbers of messages and values."""

    direction: str
    """forward or backward"""
    call: str
    messages: int
    values: int
    itemsize: int | None = None
    """bytes per value; None for values of the network's dtype"""


@dataclass(frozen=True)
class Move:
    """A move from state `before` to `after`, made together by the ranks that differ only along mesh axis `axis`.

    `mesh` is that of the placement; sizes by rank are indexed along `axis`.
    """

    mesh: MeshShape
    axis: str
    before: State
    after: State

    @property
    def ranks(self) -> int:
        """The number of ranks that make it together."""
        return self.mesh[self.axis]

    @property
    def name(self) -> str:
        """Its name in the table."""
        before, after = self.before, self.after
        if isinstance(before, Shard) and isinstance(after, Shard):
            return "exchange_slices" if before.axis == after.axis else "all_to_all"
        return NAMES[type(before), type(after)]

    @property
    def adjoint(self) -> Move:
        """The move of the gradient, in the opposite direction."""
        return Move(self.mesh, self.axis, dual(self.after), dual(self.before))

    def shape(self, rank: int, x: Shape, whole: Shape) -> Shape:
        """The shape that `rank` has afterwards, from an x of this shape of an array of shape `whole`."""
        lengths, at = list(x), self.mesh.index(rank, self.axis)
        for state in (self.before, self.after):
            if isinstance(state, Shard | Windows):
                lengths[state.axis] = whole[state.axis]
        if isinstance(self.after, Shard | Windows):
            own = self.after.slices(whole[self.after.axis], self.ranks)[at]
            lengths[self.after.axis] = own.stop - own.start
        return tuple(lengths)

    def messages(self, rank: int, x: Shape, whole: Shape) -> Iterator[Message]:
        """What `rank` sends forward and backward, for an x of this shape of an array of shape `whole`."""
        if self.ranks == 1:
            return
        y = self.shape(rank, x, whole)
        if self.name == "exchange_slices":
            for direction, (count, rows) in zip(("forward", "backward"), self._rows_sent(rank, whole)):
                if count:
                    yield Message(direction, "isend", count, rows * _row(x, self.before))
            return
        for direction, move, have, get in (("forward", self, x, y), ("backward", self.adjoint, y, x)):
            yield from move._sent(direction, have, get)

    def _sent(self, direction: str, x: Shape, y: Shape) -> Iterator[Message]:
        """What a rank sends that has an x of this shape and gets a y of this one."""
        match self.name:
            case "all_reduce":
                yield Message(direction, "all_reduce", 1, math.prod(x))
            case "unshard" | "all_gather":
                yield Message(direction, "all_gather", 1, math.prod(y) - math.prod(x))
            case "reduce_scatter":
                yield Message(direction, "reduce_scatter", 1, math.prod(x) - math.prod(y))
            case "all_to_all":
                assert isinstance(self.before, Shard)
                assert isinstance(self.after, Shard)
                kept = {self.after.axis: y[self.after.axis], self.before.axis: x[self.before.axis]}
                own = math.prod(kept.get(axis, length) for axis, length in enumerate(x))
                yield Message(direction, "all_to_all", 1, math.prod(x) - own)

    def _rows_sent(self, rank: int, whole: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
        """(messages, rows in them) of one rank, forward and backward."""
        assert isinstance(self.before, Shard)
        assert isinstance(self.after, Shard | Windows)
        length = whole[self.before.axis]
        sent = _rows_sent(
            _bounds(self.before.slices(length, self.ranks)), _bounds(self.after.slices(length, self.ranks))
        )
        return sent[self.mesh.index(rank, self.axis)]


def _row(x: Shape, state: State) -> int:
    """Values in one row of the axis along which the state is a slice."""
    assert isinstance(state, Shard)
    axis = state.axis % len(x)
    return math.prod(x[:axis]) * math.prod(x[axis + 1 :])


Bounds = tuple[tuple[int, int], ...]


def _bounds(rows: tuple[slice, ...]) -> Bounds:
    return tuple((one.start, one.stop) for one in rows)


@functools.lru_cache(maxsize=256)
def _rows_sent(owned: Bounds, wanted: Bounds) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """By rank: (messages, rows in them), forward and backward. Each row that is wanted is looked up once."""
    starts = [start for start, _ in owned]
    forward, backward = ([(0, 0)] * len(owned) for _ in range(2))
    for rank, (first, last) in enumerate(wanted):
        owner = max(0, bisect.bisect_right(starts, first) - 1)
        while owner < len(owned) and starts[owner] < last:
            rows = max(0, min(owned[owner][1], last) - max(owned[owner][0], first))
            if rows and owner != rank:
                forward[owner] = (forward[owner][0] + 1, forward[owner][1] + rows)
                backward[rank] = (backward[rank][0] + 1, backward[rank][1] + rows)
            owner += 1
    return list(zip(forward, backward))

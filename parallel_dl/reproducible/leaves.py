"""Leaves: slices of one dimension that are the same whatever the layout, and the tree in which they are added up.

    leaf      0   1   2   3   4   5   6   7
               \\ /     \\ /     \\ /     \\ /
                +       +       +       +
                  \\   /           \\   /
                    +               +           rank 0 and rank 1 of two have one of these each
                        \\       /
                            +

A leaf without elements is a zero: it is left out, and +0 is added at the end. That turns -0 into +0 as adding the zero
in its place would, and changes nothing else, so it does not matter which rank has the empty leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from parallel_dl.partition import LEAVES, shares

Array = np.ndarray


class Band(NamedTuple):
    """What is computed at a time of a dimension that is not added up: `part` of what a rank has, in a block of zeros.

    The block has the same length on every rank, and the part begins at the same place in it: so a product has one
    shape, and an element of it one place, in every layout.
    """

    part: slice
    at: int
    length: int

    @property
    def inside(self) -> slice:
        """Where the part lies in the block."""
        return slice(self.at, self.at + self.part.stop - self.part.start)

    def fill(self, array: Array, axis: int) -> Array:
        """The part along `axis` in its block, contiguous."""
        part = array[(slice(None),) * axis + (self.part,)]
        if part.shape[axis] == self.length:
            return np.ascontiguousarray(part)
        block = np.zeros((*array.shape[:axis], self.length, *array.shape[axis + 1 :]), array.dtype)
        block[(slice(None),) * axis + (self.inside,)] = part
        return block

    def take(self, block: Array, axis: int) -> Array:
        """The inverse of `fill`, a view."""
        return block[(slice(None),) * axis + (self.inside,)]


@dataclass(frozen=True)
class Own:
    """The leaves, of those that have elements, that one rank has: `sizes`, the first of which is number `first`.

    `block` is the length that every leaf of the dimension is filled up to with zeros; `some_empty` says whether any of
    them, on any rank, has no elements. They begin at element `start` of the dimension's `length`.
    """

    sizes: tuple[int, ...]
    first: int
    block: int
    some_empty: bool
    start: int
    length: int

    @cached_property
    def are_full(self) -> bool:
        """Whether no leaf has to be filled up."""
        return all(size == self.block for size in self.sizes)

    @cached_property
    def slices(self) -> list[slice]:
        """Where each leaf lies in what the rank has."""
        return [slice(start, stop) for start, stop in pairwise(accumulate(self.sizes, initial=0))]

    def bands(self, together: bool) -> list[Band]:
        """Where the dimension is not added up: all of it at a time (on a rank with a part, too), or leaf by leaf."""
        if not together:
            return [Band(part, 0, self.block) for part in self.slices]
        return [Band(slice(0, sum(self.sizes)), self.start, self.length)] if self.sizes else []

    def cut(self, array: Array, axis: int) -> Array:
        """Axis `axis` of length n as (leaves, ..., block, ...): a new array, contiguous, filled up with zeros."""
        axis %= array.ndim
        before, after, count = array.shape[:axis], array.shape[axis + 1 :], len(self.sizes)
        if self.are_full:
            stack = np.empty((count, *before, self.block, *after), array.dtype)
            to_front = (axis, *range(axis), *range(axis + 1, stack.ndim))
            stack[...] = array.reshape(*before, count, self.block, *after).transpose(to_front)
            return stack
        stack = np.zeros((count, *before, self.block, *after), array.dtype)
        whole = (slice(None),) * axis
        for leaf, size, part in zip(stack, self.sizes, self.slices):
            leaf[(*whole, slice(0, size))] = array[(*whole, part)]
        return stack

    def join(self, stack: Array, axis: int) -> Array:
        """The inverse of `cut`: (leaves, ..., block, ...) as an array of length n along `axis`, contiguous."""
        before, after = stack.shape[1 : 1 + axis], stack.shape[2 + axis :]
        joined = np.empty((*before, sum(self.sizes), *after), stack.dtype)
        if self.are_full:
            back = (*range(1, axis + 1), 0, *range(axis + 1, stack.ndim))
            joined.reshape(*before, len(self.sizes), self.block, *after)[...] = stack.transpose(back)
            return joined
        whole = (slice(None),) * axis
        for leaf, size, part in zip(stack, self.sizes, self.slices):
            joined[(*whole, part)] = leaf[(*whole, slice(0, size))]
        return joined

    def add_up(self, stack: Array) -> Array:
        """(leaves, ...) added up in the tree of all leaves: this rank's part of the sum (...)."""
        total = sum_of_leaves(stack, self.first)
        if self.some_empty:
            total = total + np.zeros((), stack.dtype)
        return total


@dataclass(frozen=True)
class Leaves:
    """How one dimension is cut: the size of every leaf, in order; some may be 0."""

    sizes: tuple[int, ...]

    @classmethod
    def even(cls, length: int) -> Leaves:
        """A dimension of this length in LEAVES leaves, see `partition`."""
        return _even(length)

    def times(self, length: int) -> Leaves:
        """Each element stands for so many: of channels, what is left of them when an image is made flat."""
        return Leaves(tuple(size * length for size in self.sizes))

    def of_ranks(self, ranks: int) -> tuple[int, ...]:
        """The number of elements of each of this many ranks, with the same number of leaves each."""
        each = len(self.sizes) // ranks
        return tuple(sum(self.sizes[rank * each : (rank + 1) * each]) for rank in range(ranks))

    def within(self, part: slice | None = None, whole: slice | None = None) -> Own:
        """The leaves in `part` of the dimension (None: all), which begins and ends where leaves do; else ValueError.

        With `whole`, another slice, they are the leaves of that one alone, whose edges may cut some of them.
        """
        sizes, length = self.sizes, sum(self.sizes)
        if whole is not None:
            edges = list(accumulate(sizes, initial=0))
            sizes = tuple(max(0, min(b, whole.stop) - max(a, whole.start)) for a, b in pairwise(edges))
            length = whole.stop - whole.start
        start, stop = (0, length) if part is None else (part.start, part.stop)
        offset = 0 if whole is None or part is None else whole.start
        return _own(sizes, start - offset, stop - offset)


@cache
def _even(length: int) -> Leaves:
    return Leaves(tuple(shares(length, LEAVES)))


@cache
def _own(sizes: tuple[int, ...], start: int, stop: int) -> Own:
    starts = list(accumulate(sizes, initial=0))
    numbers = [number for number, size in enumerate(sizes) if size and start <= starts[number] < stop]
    own = tuple(sizes[number] for number in numbers)
    if sum(own) != stop - start or (numbers and starts[numbers[0]] != start):
        raise ValueError(f"{start} to {stop} is no union of leaves of sizes {sizes}")
    return Own(own, numbers[0] if numbers else 0, max(sizes), 0 in sizes, start, starts[-1])


# -- the samples of a rank -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """Neighbouring leaves of a rank's samples with `size` samples each: numbers `leaves`, samples `rows`."""

    leaves: slice
    rows: slice
    size: int

    @property
    def count(self) -> int:
        """How many leaves."""
        return self.leaves.stop - self.leaves.start

    def of(self, array: Array, axis: int = 0, per_sample: int = 1) -> Array:
        """Axis `axis`, with this many elements per sample, as two: (..., count, size per_sample, ...); a view."""
        rows = slice(self.rows.start * per_sample, self.rows.stop * per_sample)
        shape = (*array.shape[:axis], self.count, self.size * per_sample, *array.shape[axis + 1 :])
        return array[(slice(None),) * axis + (rows,)].reshape(shape)


@cache
def runs(samples: int, leaves: int, most: int | None = None) -> tuple[Run, ...]:
    """So many samples in `leaves` leaves, as `partition.shares` cuts them, without the empty ones.

    Leaves of one size are together, but at most `most` of them.
    """
    return tuple(_runs(samples, leaves, most or leaves))


def _runs(samples: int, leaves: int, most: int) -> Iterator[Run]:
    size, longer = divmod(samples, leaves)
    for first, stop, length, offset in ((0, longer, size + 1, 0), (longer, leaves, size, longer)):
        for start in range(first, stop if length else first, most):
            end = min(start + most, stop)
            yield Run(slice(start, end), slice(offset + start * length, offset + end * length), length)


def sum_of_leaves(stack: Array, first: int = 0) -> Array:
    """The sum over axis 0 of neighbouring leaves, number `first` on, in the tree of all leaves; zeros for none."""
    if not len(stack):
        return np.zeros(stack.shape[1:], stack.dtype)
    while len(stack) > 1:
        alone = first % 2  # the first is the right one of its pair
        end = alone + (len(stack) - alone) // 2 * 2
        pairs = stack[alone:end:2] + stack[alone + 1 : end : 2]
        stack = np.concatenate((stack[:alone], pairs, stack[end:])) if alone or end < len(stack) else pairs
        first //= 2
    return stack[0]


def sum_of_rows(array: Array) -> Array:
    """(n, ...) added up over axis 0 in an order that n alone decides, element by element; zeros for none.

    NumPy's own sum takes another order where the other axes have length 1.
    """
    if not len(array):
        return np.zeros(array.shape[1:], array.dtype)
    while len(array) > 1:
        half = len(array) // 2
        pairs = array[:half] + array[half : 2 * half]
        array = np.concatenate((pairs, array[2 * half :])) if len(array) % 2 else pairs
    return array[0]


class TreeSum:
    """Adds up what comes leaf by leaf, holding at most one array per level of the tree beside the newest.

    Each thing is a sequence of arrays, which are kept and changed.
    """

    def __init__(self) -> None:
        self._partial: list[tuple[int, Sequence[Array]]] = []  # (level, sums), lower levels last

    def add(self, arrays: Sequence[Array]) -> None:
        """The next leaf."""
        level = 0
        while self._partial and self._partial[-1][0] == level:
            _, earlier = self._partial.pop()
            for total, array in zip(earlier, arrays):
                total += array
            arrays, level = earlier, level + 1
        self._partial.append((level, arrays))

    def total(self) -> Sequence[Array]:
        """The sum; ValueError unless the number of leaves is a power of two."""
        if len(self._partial) != 1:
            raise ValueError("the number of leaves in a binary tree is a power of two")
        return self._partial[0][1]

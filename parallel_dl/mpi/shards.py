"""Slices along one axis of an array: gathered, scattered, exchanged for slices along another axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parallel_dl import partition
from parallel_dl.mpi import buffers
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.calls import collective
from parallel_dl.mpi.copies import Copies
from parallel_dl.mpi.facts import along

Sizes = Sequence[int] | None


class Shards(Copies):
    """Who has which slice, by the ranks' `sizes` along the axis."""

    @collective(own=("size",))
    def shard_sizes(self, size: int) -> list[int]:
        """Every rank's `size`, by rank."""
        return self.transport.allgather(int(size))

    @collective(array=along("axis", "sizes"))
    def all_gather(self, array: Array, axis: int = 0, sizes: Sizes = None) -> Array:
        """The ranks' arrays in rank order, concatenated along `axis`, on every rank.

        The lengths along `axis` may differ and may be 0; if `sizes` (by rank) gives them, they are not exchanged.
        """
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        sizes = self._lengths(array.shape[axis], sizes)
        own = buffers.contiguous(array)
        row = buffers.product(own.shape, without=(axis,)) * buffers.units(own.dtype)
        buffers.check_count("all_gather", sum(sizes) * row)
        flat, blocks = buffers.blocks(buffers.block_shapes(own.shape, axis, sizes), own.dtype)
        counts, starts = buffers.counts_and_starts(sizes, row)
        self.transport.Allgatherv(buffers.on_the_wire(own), [buffers.on_the_wire(flat), counts, starts, None])
        if axis == 0:
            return flat.reshape(sum(sizes), *own.shape[1:])
        return np.concatenate(blocks, axis)

    @collective(array=along("axis", "sizes"))
    def gather(self, array: Array, root: int = 0, axis: int = 0, sizes: Sizes = None) -> Array | None:
        """As `all_gather`, but only `root` gets the result; the others get None."""
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        sizes = self._lengths(array.shape[axis], sizes)
        own = buffers.axis_first(array, axis)
        buffers.check_count("gather", sum(sizes) * buffers.row(own))
        counts, starts = buffers.counts_and_starts(sizes, buffers.row(own))
        if self.rank != root:
            self.transport.Gatherv(buffers.on_the_wire(own), None, root)
            return None
        whole = np.empty((sum(sizes), *own.shape[1:]), own.dtype)
        self.transport.Gatherv(buffers.on_the_wire(own), [buffers.on_the_wire(whole), counts, starts, None], root)
        return buffers.axis_back(whole, axis)

    @collective(own=("array",))
    def scatter(self, array: Array | None, root: int = 0, axis: int = 0, sizes: Sizes = None) -> Array:
        """`root`'s array cut along `axis`: rank r gets `sizes[r]` rows (partition.shares). Others may give None.

        Only the root's `axis` and `sizes` matter. ValueError or TypeError on every rank for an array or sizes that do
        not fit.
        """
        whole = None

        def described() -> tuple[Any, ...]:
            nonlocal whole
            whole = buffers.contiguous(array)
            cut = self._shares(whole.shape[buffers.normal_axis(axis, whole.ndim)], sizes)
            return (whole.shape, whole.dtype) if sizes is None and axis == 0 else (whole.shape, whole.dtype, axis, cut)

        shape, dtype, *cut = self._told_by(root, described)
        whole_axis, cut_sizes = cut or (0, None)
        whole_axis = buffers.normal_axis(whole_axis, len(shape))
        cut_sizes = self._shares(shape[whole_axis], cut_sizes)
        own = np.empty((cut_sizes[self.rank], *shape[:whole_axis], *shape[whole_axis + 1 :]), dtype)
        buffers.check_count("scatter", sum(cut_sizes) * buffers.row(own))
        counts, starts = buffers.counts_and_starts(cut_sizes, buffers.row(own))
        if whole is None:
            self.transport.Scatterv(None, buffers.on_the_wire(own), root)
        else:
            flat = buffers.on_the_wire(buffers.axis_first(whole, whole_axis))
            self.transport.Scatterv([flat, counts, starts, None], buffers.on_the_wire(own), root)
        return buffers.axis_back(own, whole_axis)

    @collective(array=along("concat_axis", "concat_sizes"))
    def all_to_all(
        self, array: Array, split_axis: int, concat_axis: int, split_sizes: Sizes = None, concat_sizes: Sizes = None
    ) -> Array:
        """From slices along `concat_axis` to slices along `split_axis`.

        Rank r gets `split_sizes[r]` (partition.shares) rows along `split_axis` of every rank's array, concatenated
        along `concat_axis` in rank order; the lengths there are exchanged unless `concat_sizes` gives them.
        """
        array = np.asarray(array)
        split_axis = buffers.normal_axis(split_axis, array.ndim)
        concat_axis = buffers.normal_axis(concat_axis, array.ndim)
        if split_axis == concat_axis:
            raise ValueError(f"all_to_all splits and concatenates along the same axis {split_axis}")
        split_sizes = self._shares(array.shape[split_axis], split_sizes)
        concat_sizes = self._lengths(array.shape[concat_axis], concat_sizes)
        sent = buffers.axis_first(array, split_axis)
        row = buffers.row(sent) // max(1, array.shape[concat_axis])  # values per row of both axes
        if array.shape[concat_axis] == 0:
            row = buffers.units(sent.dtype) * buffers.product(array.shape, without=(split_axis, concat_axis))
        buffers.check_count("all_to_all", max(split_sizes) * sum(concat_sizes) * row)
        buffers.check_count("all_to_all", sum(split_sizes) * max(concat_sizes) * row)
        # the axis concatenated over: where it stands once the split axis is in front
        position = concat_axis + (concat_axis < split_axis)
        mine = split_sizes[self.rank]
        received = np.empty(mine * sum(concat_sizes) * row // buffers.units(sent.dtype), sent.dtype)
        send_counts, send_starts = buffers.counts_and_starts(split_sizes, array.shape[concat_axis] * row)
        counts, starts = buffers.counts_and_starts(concat_sizes, mine * row)
        self.transport.Alltoallv(
            [buffers.on_the_wire(sent), send_counts, send_starts, None],
            [buffers.on_the_wire(received), counts, starts, None],
        )
        blocks, start = [], 0
        for length in concat_sizes:
            shape = (mine, *sent.shape[1:position], length, *sent.shape[position + 1 :])
            stop = start + buffers.product(shape)
            blocks.append(received[start:stop].reshape(shape))
            start = stop
        return buffers.axis_back(np.concatenate(blocks, axis=position), split_axis)

    def _shares(self, length: int, sizes: Sizes) -> Sequence[int]:
        if sizes is None:
            return partition.shares(length, self.size)
        if len(sizes) != self.size or sum(sizes) != length or min(sizes) < 0:
            raise ValueError(f"sizes {list(sizes)} do not cut a length of {length} into {self.size} shares")
        return sizes

    def _lengths(self, length: int, sizes: Sizes) -> Sequence[int]:
        if sizes is None:
            return self.transport.allgather(length)
        if len(sizes) != self.size or sizes[self.rank] != length:
            raise ValueError(f"sizes {list(sizes)}, but rank {self.rank} of {self.size} has a length of {length}")
        return sizes

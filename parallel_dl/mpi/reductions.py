"""Reductions: the ranks' arrays combined element by element, on all ranks, on one, or in slices."""

from __future__ import annotations

from typing import Any

import numpy as np

from parallel_dl.mpi import buffers
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.calls import collective
from parallel_dl.mpi.facts import fits, in_place
from parallel_dl.mpi.messages import Messages
from parallel_dl.mpi.pending import Pending
from parallel_dl.mpi.shards import Shards, Sizes
from parallel_dl.mpi.startup import MPI

TAG_TREE = 32703  # beside those of `messages`


class Reductions(Shards, Messages):
    """Sums, products, maxima and minima; sums also in a tree, and in slices."""

    @collective(out=fits("array"))
    def all_reduce(self, array: Array, op: str = "sum", out: Array | None = None) -> Array:
        """Combines the ranks' arrays element by element; every rank gets the result, with sums bitwise identical.

        `op` is sum, prod, max or min (a NaN anywhere gives NaN), for bool also `or` and `and`. float16 is summed in
        float32. `out` may be `array` itself.
        """
        if self.sums_in_tree and op == "sum":
            total = self._sum_in_tree(buffers.contiguous(array))
            return total if out is None else buffers.put(out, total)
        if type(array) is np.ndarray and array.flags.c_contiguous and array.size <= buffers.MAX_COUNT:
            operation = buffers.OPERATIONS.get(op, {}).get(array.dtype)
            if operation is not None:
                if out is None:
                    out = np.empty(array.shape, array.dtype)
                    self.transport.Allreduce(array, out, operation)
                    return out
                if out is array:
                    self.transport.Allreduce(MPI.IN_PLACE, out, operation)
                    return out
                if buffers.can_receive(out, array):
                    self.transport.Allreduce(array, out, operation)
                    return out
        return self._all_reduce(array, op, out)

    def _all_reduce(self, array: Any, op: str, out: Array | None) -> Array:
        array = buffers.contiguous(array)
        reduction = buffers.reduction_for(op, array.dtype)
        flat = reduction.encode(array)
        for piece in buffers.pieces(flat):
            self.transport.Allreduce(MPI.IN_PLACE, piece, reduction.operation)
        total = reduction.decode(flat, array)
        # refused only now: the other ranks are not kept waiting
        return total if out is None else buffers.put(out, total)

    def _sum_in_tree(self, array: Array) -> Array:
        """The sum of the ranks' contiguous arrays, see `in_tree`; a new array."""
        total, received = array.copy(), np.empty_like(array)
        distance = 1
        while distance < self.size:
            partner = self.rank ^ distance
            arriving = self.ireceive(received, partner, TAG_TREE)
            leaving = self.isend(total, partner, TAG_TREE)
            arriving.wait()
            leaving.wait()
            total = total + received  # a + b are the bits of b + a: both sides have the same
            distance *= 2
        return total

    @collective(array=in_place)
    def start_all_reduce(self, array: Array, op: str = "sum") -> Pending:
        """`all_reduce` into `array` itself (C-contiguous, a type MPI can calculate with), complete after `wait()`.

        All ranks must start them in the same order, and none may call a blocking all_reduce instead.
        """
        dtype = buffers.native(array.dtype)
        reduction = buffers.reduction_for(op, dtype)
        if not array.flags.c_contiguous or not array.flags.writeable or reduction.compute != dtype:
            raise ValueError(f"start_all_reduce needs a writable C-contiguous array and not {array.dtype.name}")
        total = reduction.encode(array, copy=False)  # the array itself, where MPI can calculate in it
        flat = buffers.pieces(total)
        requests = [self.transport.Iallreduce(MPI.IN_PLACE, piece, reduction.operation) for piece in flat]
        into_itself = np.may_share_memory(total, array)
        return Pending(array if into_itself else total, flat, requests, into=array, decode=reduction.decode)

    @collective
    def reduce(self, array: Array, root: int = 0, op: str = "sum") -> Array | None:
        """As `all_reduce`, but only `root` gets the result; the others get None."""
        array = buffers.contiguous(array)
        reduction = buffers.reduction_for(op, array.dtype)
        flat = reduction.encode(array, copy=self.rank == root)
        for piece in buffers.pieces(flat):
            if self.rank == root:
                self.transport.Reduce(MPI.IN_PLACE, piece, reduction.operation, root)
            else:
                self.transport.Reduce(piece, None, reduction.operation, root)
        return reduction.decode(flat, array) if self.rank == root else None

    @collective
    def reduce_scatter(self, array: Array, axis: int = 0, sizes: Sizes = None) -> Array:
        """Sums the ranks' arrays; each rank gets `sizes[rank]` rows of the sum along `axis` (partition.shares)."""
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        sizes = self._shares(array.shape[axis], sizes)
        if self.sums_in_tree:
            start = sum(sizes[: self.rank])
            total = self._sum_in_tree(buffers.contiguous(array))
            return buffers.contiguous(buffers.along(total, axis, slice(start, start + sizes[self.rank])))
        operation, compute, *_ = buffers.reduction_for("sum", array.dtype)
        buffers.check_count("reduce_scatter", array.size)
        shapes = buffers.block_shapes(array.shape, axis, sizes)
        packed, blocks = buffers.blocks(shapes, compute)
        for block, part in zip(blocks, buffers.slices_along(array, axis, sizes)):
            block[...] = part
        own = np.empty(shapes[self.rank], compute)
        self.transport.Reduce_scatter(packed, own.reshape(-1), [block.size for block in blocks], operation)
        return own.astype(buffers.native(array.dtype), copy=False)

"""Messages from one rank to another, and exchanges made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parallel_dl.mpi import buffers
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.calls import collective, message
from parallel_dl.mpi.facts import along, known, type_only
from parallel_dl.mpi.group import Group
from parallel_dl.mpi.pending import Pending, check_length
from parallel_dl.mpi.startup import MPI

# Below MPI's guaranteed upper bound of 32767, out of the way of users' tags.
TAG_SHIFT, TAG_SLICES = 32701, 32702


class Messages(Group):
    """Sends and receives, shifts, and exchanges of arbitrary slices."""

    @message()
    def send(self, array: Array, destination: int, tag: int = 0) -> None:
        """Sends the values; the receiver must know shape and dtype. May block until the receive is posted."""
        for piece in buffers.pieces(buffers.on_the_wire(buffers.contiguous(array))):
            self.transport.Send(piece, destination, tag)

    @message("; ireceive(array, source) receives into an array")
    def receive(self, source: int, shape: tuple[int, ...] = (), dtype: Any = np.float32, tag: int = 0) -> Array:
        """Receives the array of that shape and dtype from `source`; ValueError if less was sent.

        Checked mode compares dtype and number of values with those sent.
        """
        array = np.empty(shape, buffers.native(dtype))
        status = MPI.Status()
        for piece in buffers.pieces(buffers.on_the_wire(array)):
            self.transport.Recv(piece, source, tag, status)
            check_length(status, piece, source)
        return array

    @message()
    def isend(self, array: Array, destination: int, tag: int = 0) -> Pending:
        """Starts a send; the array must not change until `wait()` has returned."""
        array = buffers.contiguous(array)
        flat = buffers.pieces(buffers.on_the_wire(array))
        return Pending(array, flat, [self.transport.Isend(piece, destination, tag) for piece in flat])

    @message()
    def ireceive(self, array: Array, source: int, tag: int = 0) -> Pending:
        """Starts a receive into `array` (C-contiguous), which is complete when `wait()` returns it."""
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError("ireceive needs a writable C-contiguous array to receive into")
        arriving = array if array.dtype.isnative else np.empty(array.shape, buffers.native(array.dtype))
        flat = buffers.pieces(buffers.on_the_wire(arriving))
        requests = [self.transport.Irecv(piece, source, tag) for piece in flat]
        return Pending(arriving, flat, requests, source, into=array)

    @collective(array=type_only, shape=known)
    def shift(self, array: Array, offset: int, cyclic: bool = True, shape: tuple[int, ...] | None = None) -> Array:
        """Sends to rank + offset and returns what rank - offset sent; shapes may differ between ranks.

        Without `cyclic`, nothing goes beyond the ends, and a rank without a sender gets zeros of `shape` (by default,
        its own array's). If every rank knows the `shape` it will receive, giving it saves the exchange of shapes.
        """
        array = buffers.contiguous(array)
        to, source = self.rank + offset, self.rank - offset
        if cyclic:
            to, source = to % self.size, source % self.size
        to = to if 0 <= to < self.size else MPI.PROC_NULL
        has_source = 0 <= source < self.size
        source = source if has_source else MPI.PROC_NULL
        if shape is None:
            told = self.transport.sendrecv(array.shape, to, TAG_SHIFT, None, source, TAG_SHIFT)
            shape = told if has_source else array.shape
        result = np.empty(shape, array.dtype) if has_source else np.zeros(shape, array.dtype)
        receives = self.ireceive(result, source, TAG_SHIFT) if has_source else None
        self.send(array, to, TAG_SHIFT)
        if receives is not None:
            receives.wait()
        return result

    @collective(array=along("axis"))
    def exchange_slices(self, array: Array, axis: int, owned: Sequence[slice], wanted: Sequence[slice]) -> Array:
        """The rows `wanted[rank]` along `axis` of the whole array, of which rank r has the rows `owned[r]`.

        `owned` are contiguous and in rank order; several ranks may want the same rows. Both lists are the same on all
        ranks. A rank sends only what another wants.
        """
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        have, want = owned[self.rank], wanted[self.rank]
        result = np.empty(buffers.with_length(array.shape, axis, want.stop - want.start), buffers.native(array.dtype))
        receives = []
        for rank in range(self.size):
            part = _overlap(owned[rank], want)
            if part:
                place = buffers.along(result, axis, _within(part, want))
                if rank == self.rank:
                    place[...] = buffers.along(array, axis, _within(part, have))
                else:
                    buffer = place if place.flags.c_contiguous else np.empty(place.shape, place.dtype)
                    receives.append((self.ireceive(buffer, rank, TAG_SLICES), place, buffer))
        sends = [
            self.isend(buffers.along(array, axis, _within(part, have)), rank, TAG_SLICES)
            for rank in range(self.size)
            if rank != self.rank and (part := _overlap(have, wanted[rank]))
        ]
        for pending, place, buffer in receives:
            pending.wait()
            if buffer is not place:
                place[...] = buffer
        for pending in sends:
            pending.wait()
        return result

    @collective(array=along("axis"))
    def return_slices(self, array: Array, axis: int, owned: Sequence[slice], wanted: Sequence[slice]) -> Array:
        """The adjoint of `exchange_slices`: copies return to their owner, which adds them up in rank order."""
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        have, want = owned[self.rank], wanted[self.rank]
        total = np.zeros(buffers.with_length(array.shape, axis, have.stop - have.start), buffers.native(array.dtype))
        receives = {}
        for rank in range(self.size):
            part = _overlap(have, wanted[rank])
            if part and rank != self.rank:
                buffer = np.empty(buffers.with_length(array.shape, axis, part.stop - part.start), total.dtype)
                receives[rank] = self.ireceive(buffer, rank, TAG_SLICES)
        sends = [
            self.isend(buffers.along(array, axis, _within(part, want)), rank, TAG_SLICES)
            for rank in range(self.size)
            if rank != self.rank and (part := _overlap(owned[rank], want))
        ]
        for rank in range(self.size):
            part = _overlap(have, wanted[rank])
            if part:
                own = rank == self.rank
                arrived = buffers.along(array, axis, _within(part, want)) if own else receives[rank].wait()
                place = buffers.along(total, axis, _within(part, have))
                place += arrived
        for pending in sends:
            pending.wait()
        return total


def _overlap(a: slice, b: slice) -> slice | None:
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else None


def _within(part: slice, whole: slice) -> slice:
    """`part`, counted from the start of `whole`."""
    return slice(part.start - whole.start, part.stop - whole.start)

"""A communicator: the ranks that work together, and the movements of NumPy arrays between them.

Every movement takes arrays of any dtype (except Python objects), byte and memory order, also empty ones, and returns
C-contiguous arrays in native byte order. MPI counts with C ints. all_reduce, reduce, broadcast, send, receive and shift
cut larger arrays into parts; the others raise one OverflowError, on every rank, before anything is sent. If only
the root can see that a call is wrong, it tells the others, and all ranks raise.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from parallel_dl import partition
from parallel_dl.errors import number_of
from parallel_dl.mpi import buffers
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.ledger import Counted, Ledger, counted
from parallel_dl.mpi.startup import MPI
from parallel_dl.mpi.stress import under_stress

# Below MPI's guaranteed upper bound of 32767, out of the way of users' tags.
TAG_SHIFT, TAG_SLICES, TAG_TREE = 32701, 32702, 32703

Sizes = Sequence[int] | None


class _Shared:
    """What a communicator has in common with those that are the same but for the label."""

    def __init__(self) -> None:
        self.one_node: bool | None = None
        # (layer, direction, in_tree) -> communicator, this one too; empty until the first is asked for
        self.labelled: dict[tuple[str, str | None, bool], Any] = {}


class Communicator:
    """One mpi4py communicator, with collectives on arrays.

    `checked=True` (by default: if the environment variable PARALLEL_DL_CHECKED is 1) gives a `CheckedCommunicator`,
    which compares the ranks' calls before it makes them. Making that one is itself a collective call.

    `ledger` (by default that of `mpi`, if it has one) counts what is passed to MPI: see `parallel_dl.mpi.ledger`. It
    does so under `axis`, the mesh axis the communicator runs along: "pipe", "data" or "model", or "world" for none of
    them. Duplicates, splits and the communicators of a mesh inherit both, and the label.
    """

    mpi: MPI.Intracomm
    rank: int
    size: int
    name: str
    ledger: Ledger | None
    axis: str
    checked = False
    sums_in_tree = False
    """whether sums are made as `in_tree` says"""

    def __new__(
        cls,
        mpi: Any,
        checked: bool | None = None,
        name: str | None = None,
        ledger: Ledger | None = None,
        axis: str | None = None,
    ) -> Communicator:
        if checked is None:
            checked = os.environ.get("PARALLEL_DL_CHECKED", "0") not in ("", "0")
        if checked and cls is Communicator:
            from parallel_dl.mpi.checked import CheckedCommunicator

            cls = CheckedCommunicator
        return object.__new__(cls)

    def __init__(
        self,
        mpi: Any,
        checked: bool | None = None,
        name: str | None = None,
        ledger: Ledger | None = None,
        axis: str | None = None,
    ) -> None:
        self.rank = mpi.rank
        self.size = mpi.size
        self.name = name or mpi.name
        before = mpi if isinstance(mpi, Counted) else None
        self.ledger = before.ledger if ledger is None and before is not None else ledger
        self.axis = axis or (before.axis if before is not None else "world")
        label = (before.layer, before.direction) if before is not None else ("", None)
        mpi = mpi if self.ledger is None else counted(mpi, self.ledger, self.axis, *label)
        self.mpi = under_stress(mpi, self.name)
        self._shared = _Shared()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, rank {self.rank} of {self.size})"

    def __deepcopy__(self, memo: Any) -> Self:
        """Itself: the copy of what holds a communicator talks to the same ranks."""
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a communicator cannot be pickled: what holds one lives in this process; save a state_dict()")

    def announce(self, call: str, *facts: Any) -> None:
        """To be called before a collective that is written with raw MPI calls: the checked communicator compares it."""

    # -- the communicator itself -----------------------------------------------------------------------------------
    def duplicate(self, name: str | None = None, checked: bool = True) -> Communicator:
        """The same ranks in a communicator of their own: no message of one is ever received by the other.

        With `checked=False` it compares no calls, even if this one does.
        """
        return self._made_of(self.mpi.Dup(), name or self.name, checked=checked)

    def split(self, color: int | None, key: int = 0, name: str | None = None, axis: str | None = None) -> Self | None:
        """One communicator for the ranks of each `color`, ordered by `key`, then by rank; None for color None.

        `axis` is the mesh axis that it runs along, by default that of this one.
        """
        part = self.mpi.Split(MPI.UNDEFINED if color is None else color, key)
        return None if part == MPI.COMM_NULL else self._made_of(part, name, axis)

    def _made_of(self, mpi: Any, name: str | None, axis: str | None = None, checked: bool = True) -> Any:
        """A communicator of other ranks or other messages, with this one's ledger, axis and label."""
        if self.ledger is not None:
            assert isinstance(self.mpi, Counted)
            mpi = counted(mpi, self.ledger, self.axis, self.mpi.layer, self.mpi.direction)
        if not checked:
            return Communicator(mpi, checked=False, name=name, axis=axis or self.axis)
        return type(self)(mpi, name=name, axis=axis or self.axis)

    def labelled(self, layer: str, direction: str | None = None) -> Self:
        """This communicator under another label: the ledger enters what it does under `layer` and `direction`.

        `direction` is "forward" or "backward" (ValueError otherwise); by default it is found at the time of the call,
        "backward" while autograd's backward runs. Without a ledger it is this communicator itself. With one they are
        still one communicator: messages of one are received by the other, they are checked together and freed together.
        """
        if direction not in (None, "forward", "backward"):
            raise ValueError(f"direction {direction!r}: valid are forward, backward")
        if self.ledger is None or self.size == 1:
            return self
        same = self._shared.labelled
        if not same:
            assert isinstance(self.mpi, Counted)
            same[self.mpi.layer, self.mpi.direction, self.sums_in_tree] = self
        key = layer, direction, self.sums_in_tree
        if key not in same:
            other = object.__new__(type(self))
            other.__dict__.update(self.__dict__)
            other.mpi = counted(self.mpi, self.ledger, self.axis, layer, direction)
            same[key] = other
        return same[key]

    def in_tree(self) -> Self:
        """This communicator, whose `all_reduce` and `reduce_scatter` add up in one binary tree over the ranks.

        Ranks 2k and 2k+1 are added first, then the sums of neighbouring pairs, and so on, whatever the MPI library, the
        size of the array and the machine: recursive doubling, each rank exchanging whole arrays log2(size) times.
        ValueError unless the number of ranks is a power of two.
        """
        if self.size & (self.size - 1):
            raise ValueError(f"a binary tree over {self.size} ranks: their number must be a power of two")
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.sums_in_tree = True
        return other

    def free(self) -> None:
        """Gives the communicator back to MPI (collective); MPI's own world and self stay."""
        if self.mpi not in (MPI.COMM_WORLD, MPI.COMM_SELF, MPI.COMM_NULL):
            self.mpi.Free()
            for other in self._shared.labelled.values():  # they hold what is no communicator any more
                other.mpi = MPI.COMM_NULL

    @property
    def is_freed(self) -> bool:
        """Whether `free()` was called: it is no communicator any more."""
        return self.mpi == MPI.COMM_NULL

    @property
    def is_one_node(self) -> bool:
        """Whether all ranks can share memory. Collective when first asked, then remembered."""
        if self._shared.one_node is None:
            node = self.mpi.Split_type(MPI.COMM_TYPE_SHARED)
            self._shared.one_node = self.mpi.allreduce(node.size, MPI.MIN) == self.size
            node.Free()
        return self._shared.one_node

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        self.mpi.Barrier()

    # -- reductions ------------------------------------------------------------------------------------------------
    def all_reduce(self, array: Array, op: str = "sum", out: Array | None = None) -> Array:
        """Combines the ranks' arrays element by element; every rank gets the result, sums bitwise the same.

        `op` is sum, prod, max, min (a NaN anywhere gives NaN), for bool also `or` and `and`. float16 is added up in
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
                    self.mpi.Allreduce(array, out, operation)
                    return out
                if out is array:
                    self.mpi.Allreduce(MPI.IN_PLACE, out, operation)
                    return out
                if buffers.can_receive(out, array):
                    self.mpi.Allreduce(array, out, operation)
                    return out
        return self._all_reduce(array, op, out)

    def _all_reduce(self, array: Any, op: str, out: Array | None) -> Array:
        array = buffers.contiguous(array)
        reduction = buffers.reduction_for(op, array.dtype)
        flat = reduction.encode(array)
        for piece in buffers.pieces(flat):
            self.mpi.Allreduce(MPI.IN_PLACE, piece, reduction.operation)
        total = reduction.decode(flat, array)
        return (
            total if out is None else buffers.put(out, total)
        )  # refused only now: the other ranks are not kept waiting

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

    def start_all_reduce(self, array: Array, op: str = "sum") -> Pending:
        """`all_reduce` into `array` itself (C-contiguous, a type MPI can calculate with), complete after `wait()`.

        All ranks start them in the same order, and none of them calls a blocking all_reduce instead.
        """
        dtype = buffers.native(array.dtype)
        reduction = buffers.reduction_for(op, dtype)
        if not array.flags.c_contiguous or not array.flags.writeable or reduction.compute != dtype:
            raise ValueError(f"start_all_reduce needs a writable C-contiguous array and not {array.dtype.name}")
        total = reduction.encode(array, copy=False)  # the array itself, where MPI can calculate in it
        flat = buffers.pieces(total)
        requests = [self.mpi.Iallreduce(MPI.IN_PLACE, piece, reduction.operation) for piece in flat]
        into_itself = np.may_share_memory(total, array)
        return Pending(array if into_itself else total, flat, requests, into=array, decode=reduction.decode)

    def reduce(self, array: Array, root: int = 0, op: str = "sum") -> Array | None:
        """As `all_reduce`, but only `root` gets the result; the others get None."""
        array = buffers.contiguous(array)
        reduction = buffers.reduction_for(op, array.dtype)
        flat = reduction.encode(array, copy=self.rank == root)
        for piece in buffers.pieces(flat):
            if self.rank == root:
                self.mpi.Reduce(MPI.IN_PLACE, piece, reduction.operation, root)
            else:
                self.mpi.Reduce(piece, None, reduction.operation, root)
        return reduction.decode(flat, array) if self.rank == root else None

    def reduce_scatter(self, array: Array, axis: int = 0, sizes: Sizes = None) -> Array:
        """The sum of the ranks' arrays, of which each rank gets `sizes[rank]` rows along `axis` (partition.shares)."""
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        sizes = self._shares(array.shape[axis], sizes)
        if self.sums_in_tree:
            start = sum(sizes[: self.rank])
            total = self._sum_in_tree(buffers.contiguous(array))
            return buffers.contiguous(_along(total, axis, slice(start, start + sizes[self.rank])))
        operation, compute, *_ = buffers.reduction_for("sum", array.dtype)
        buffers.check_count("reduce_scatter", array.size)
        shapes = buffers.block_shapes(array.shape, axis, sizes)
        packed, blocks = buffers.blocks(shapes, compute)
        for block, part in zip(blocks, buffers.slices_along(array, axis, sizes)):
            block[...] = part
        own = np.empty(shapes[self.rank], compute)
        self.mpi.Reduce_scatter(packed, own.reshape(-1), [block.size for block in blocks], operation)
        return own.astype(buffers.native(array.dtype), copy=False)

    # -- slices along one axis -------------------------------------------------------------------------------------
    def shard_sizes(self, size: int) -> list[int]:
        """Every rank's `size`, by rank."""
        return self.mpi.allgather(int(size))

    def all_gather(self, array: Array, axis: int = 0, sizes: Sizes = None) -> Array:
        """The ranks' arrays in rank order, concatenated along `axis`, on every rank.

        The lengths along `axis` may differ and be 0; given as `sizes` (by rank) they need not be exchanged.
        """
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        sizes = self._lengths(array.shape[axis], sizes)
        own = buffers.contiguous(array)
        row = _product(own.shape, without=(axis,)) * buffers.units(own.dtype)
        buffers.check_count("all_gather", sum(sizes) * row)
        flat, blocks = buffers.blocks(buffers.block_shapes(own.shape, axis, sizes), own.dtype)
        counts, starts = buffers.counts_and_starts(sizes, row)
        self.mpi.Allgatherv(buffers.on_the_wire(own), [buffers.on_the_wire(flat), counts, starts, None])
        if axis == 0:
            return flat.reshape(sum(sizes), *own.shape[1:])
        return np.concatenate(blocks, axis)

    def gather(self, array: Array, root: int = 0, axis: int = 0, sizes: Sizes = None) -> Array | None:
        """As `all_gather`, but only `root` gets the result; the others get None."""
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        sizes = self._lengths(array.shape[axis], sizes)
        own = buffers.axis_first(array, axis)
        buffers.check_count("gather", sum(sizes) * _row(own))
        counts, starts = buffers.counts_and_starts(sizes, _row(own))
        if self.rank != root:
            self.mpi.Gatherv(buffers.on_the_wire(own), None, root)
            return None
        whole = np.empty((sum(sizes), *own.shape[1:]), own.dtype)
        self.mpi.Gatherv(buffers.on_the_wire(own), [buffers.on_the_wire(whole), counts, starts, None], root)
        return buffers.axis_back(whole, axis)

    def scatter(self, array: Array | None, root: int = 0, axis: int = 0, sizes: Sizes = None) -> Array:
        """`root`'s array cut along `axis`: rank r gets `sizes[r]` rows (partition.shares). Others may give None.

        `axis` and `sizes` are the root's. ValueError or TypeError on every rank for an array or sizes that do not fit.
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
        buffers.check_count("scatter", sum(cut_sizes) * _row(own))
        counts, starts = buffers.counts_and_starts(cut_sizes, _row(own))
        if whole is None:
            self.mpi.Scatterv(None, buffers.on_the_wire(own), root)
        else:
            flat = buffers.on_the_wire(buffers.axis_first(whole, whole_axis))
            self.mpi.Scatterv([flat, counts, starts, None], buffers.on_the_wire(own), root)
        return buffers.axis_back(own, whole_axis)

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
        row = _row(sent) // max(1, array.shape[concat_axis])  # values per row of both axes
        if array.shape[concat_axis] == 0:
            row = buffers.units(sent.dtype) * _product(array.shape, without=(split_axis, concat_axis))
        buffers.check_count("all_to_all", max(split_sizes) * sum(concat_sizes) * row)
        buffers.check_count("all_to_all", sum(split_sizes) * max(concat_sizes) * row)
        # the axis concatenated over: where it stands once the split axis is in front
        position = concat_axis + (concat_axis < split_axis)
        mine = split_sizes[self.rank]
        received = np.empty(mine * sum(concat_sizes) * row // buffers.units(sent.dtype), sent.dtype)
        send_counts, send_starts = buffers.counts_and_starts(split_sizes, array.shape[concat_axis] * row)
        counts, starts = buffers.counts_and_starts(concat_sizes, mine * row)
        self.mpi.Alltoallv(
            [buffers.on_the_wire(sent), send_counts, send_starts, None],
            [buffers.on_the_wire(received), counts, starts, None],
        )
        blocks, start = [], 0
        for length in concat_sizes:
            shape = (mine, *sent.shape[1:position], length, *sent.shape[position + 1 :])
            stop = start + _product(shape)
            blocks.append(received[start:stop].reshape(shape))
            start = stop
        return buffers.axis_back(np.concatenate(blocks, axis=position), split_axis)

    # -- copies ----------------------------------------------------------------------------------------------------
    def broadcast(
        self, array: Array | None, root: int = 0, shape: tuple[int, ...] | None = None, dtype: Any = None
    ) -> Array:
        """`root`'s array on every rank (on `root` itself not a copy). What the others give is ignored.

        `shape` and `dtype`, if all ranks know both of them, save the message that tells them. ValueError or TypeError
        on every rank for an array of another shape or type, or that cannot be sent.
        """
        own = None

        def described() -> tuple[tuple[int, ...], np.dtype]:
            nonlocal own
            own = buffers.contiguous(array)
            as_dtype = own.dtype if dtype is None else buffers.native(dtype)
            as_shape = own.shape if shape is None else tuple(shape)
            if (own.dtype, own.shape) != (as_dtype, as_shape):
                raise ValueError(f"broadcast of {own.dtype} {own.shape}, announced as {as_dtype} {as_shape}")
            return own.shape, own.dtype

        if shape is None or dtype is None:
            shape, dtype = self._told_by(root, described)
        else:
            self._agreed_by(root, described)
        if own is None:
            own = np.empty(shape, buffers.native(dtype))
        for piece in buffers.pieces(buffers.on_the_wire(own)):
            self.mpi.Bcast(piece, root)
        return own

    def _told_by(self, root: int, say: Callable[[], Any]) -> Any:
        """The result of `say()` on `root`, on every rank; if it raises an error there, all ranks raise it."""
        told: Any = None
        if self.rank == root:
            try:
                told = say()
            except (TypeError, ValueError) as error:
                told = error
        told = self.mpi.bcast(told, root)
        if isinstance(told, Exception):
            raise told
        return told

    def _agreed_by(self, root: int, say: Callable[[], Any]) -> None:
        """Raises on every rank what `say()` raises on `root`; where it raises nothing, that costs one byte."""
        wrong, error = np.zeros(1, np.uint8), None
        if self.rank == root:
            try:
                say()
            except (TypeError, ValueError) as found:
                wrong[0], error = 1, found
        MPI.Intracomm.Bcast(self.mpi, wrong, root)  # no ledger enters it
        if wrong[0]:
            raise self.mpi.bcast(error, root)

    def send(self, array: Array, destination: int, tag: int = 0) -> None:
        """Sends the values; the receiver has to know shape and dtype. May wait until the receive is posted."""
        for piece in buffers.pieces(buffers.on_the_wire(buffers.contiguous(array))):
            self.mpi.Send(piece, destination, tag)

    def receive(self, source: int, shape: tuple[int, ...] = (), dtype: Any = np.float32, tag: int = 0) -> Array:
        """The array of that shape and dtype that `source` has sent; ValueError if it has sent less.

        The checked mode compares dtype and number of values with those that were sent.
        """
        array = np.empty(shape, buffers.native(dtype))
        status = MPI.Status()
        for piece in buffers.pieces(buffers.on_the_wire(array)):
            self.mpi.Recv(piece, source, tag, status)
            _check_length(status, piece, source)
        return array

    def isend(self, array: Array, destination: int, tag: int = 0) -> Pending:
        """Starts a send: the array must stay as it is until `wait()` has returned."""
        array = buffers.contiguous(array)
        flat = buffers.pieces(buffers.on_the_wire(array))
        return Pending(array, flat, [self.mpi.Isend(piece, destination, tag) for piece in flat])

    def ireceive(self, array: Array, source: int, tag: int = 0) -> Pending:
        """Starts a receive into `array` (C-contiguous), which is complete when `wait()` returns it."""
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError("ireceive needs a writable C-contiguous array to receive into")
        arriving = array if array.dtype.isnative else np.empty(array.shape, buffers.native(array.dtype))
        flat = buffers.pieces(buffers.on_the_wire(arriving))
        requests = [self.mpi.Irecv(piece, source, tag) for piece in flat]
        return Pending(arriving, flat, requests, source, into=array)

    def shift(self, array: Array, offset: int, cyclic: bool = True, shape: tuple[int, ...] | None = None) -> Array:
        """Sends to rank + offset and returns what rank - offset has sent; the shapes may differ between ranks.

        Without `cyclic` nothing goes beyond the ends, and a rank with no sender gets zeros of `shape` (by default of
        its own array's). `shape`, if every rank knows what it will receive, saves the exchange of shapes.
        """
        array = buffers.contiguous(array)
        to, source = self.rank + offset, self.rank - offset
        if cyclic:
            to, source = to % self.size, source % self.size
        to = to if 0 <= to < self.size else MPI.PROC_NULL
        has_source = 0 <= source < self.size
        source = source if has_source else MPI.PROC_NULL
        if shape is None:
            told = self.mpi.sendrecv(array.shape, to, TAG_SHIFT, None, source, TAG_SHIFT)
            shape = told if has_source else array.shape
        result = np.empty(shape, array.dtype) if has_source else np.zeros(shape, array.dtype)
        receives = self.ireceive(result, source, TAG_SHIFT) if has_source else None
        self.send(array, to, TAG_SHIFT)
        if receives is not None:
            receives.wait()
        return result

    # -- slices from anywhere --------------------------------------------------------------------------------------
    def exchange_slices(self, array: Array, axis: int, owned: Sequence[slice], wanted: Sequence[slice]) -> Array:
        """The rows `wanted[rank]` along `axis`, counted over all ranks' arrays, of which rank r has `owned[r]`.

        `owned` are contiguous and in rank order; several ranks may want the same rows. Both lists are the same on all
        ranks. A rank sends only what another wants.
        """
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        have, want = owned[self.rank], wanted[self.rank]
        result = np.empty(_with_length(array.shape, axis, want.stop - want.start), buffers.native(array.dtype))
        receives = []
        for rank in range(self.size):
            part = _overlap(owned[rank], want)
            if part:
                place = _along(result, axis, _within(part, want))
                if rank == self.rank:
                    place[...] = _along(array, axis, _within(part, have))
                else:
                    buffer = place if place.flags.c_contiguous else np.empty(place.shape, place.dtype)
                    receives.append((self.ireceive(buffer, rank, TAG_SLICES), place, buffer))
        sends = [
            self.isend(_along(array, axis, _within(part, have)), rank, TAG_SLICES)
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

    def return_slices(self, array: Array, axis: int, owned: Sequence[slice], wanted: Sequence[slice]) -> Array:
        """The adjoint of `exchange_slices`: copies go back to their owner, which adds them up in rank order."""
        array = np.asarray(array)
        axis = buffers.normal_axis(axis, array.ndim)
        have, want = owned[self.rank], wanted[self.rank]
        total = np.zeros(_with_length(array.shape, axis, have.stop - have.start), buffers.native(array.dtype))
        receives = {}
        for rank in range(self.size):
            part = _overlap(have, wanted[rank])
            if part and rank != self.rank:
                buffer = np.empty(_with_length(array.shape, axis, part.stop - part.start), total.dtype)
                receives[rank] = self.ireceive(buffer, rank, TAG_SLICES)
        sends = [
            self.isend(_along(array, axis, _within(part, want)), rank, TAG_SLICES)
            for rank in range(self.size)
            if rank != self.rank and (part := _overlap(owned[rank], want))
        ]
        for rank in range(self.size):
            part = _overlap(have, wanted[rank])
            if part:
                own = rank == self.rank
                arrived = _along(array, axis, _within(part, want)) if own else receives[rank].wait()
                place = _along(total, axis, _within(part, have))
                place += arrived
        for pending in sends:
            pending.wait()
        return total

    # -- Python objects --------------------------------------------------------------------------------------------
    def all_gather_object(self, thing: Any) -> list[Any]:
        """Every rank's object (pickled), by rank; TypeError on every rank when one of them cannot be pickled."""
        things = self._with_pickle(self.mpi.allgather, thing)
        for rank, found in enumerate(things):
            if isinstance(found, _NoPickle):
                raise TypeError(f"all_gather_object: rank {rank} has {found.text}")
        return things

    def broadcast_object(self, thing: Any, root: int = 0) -> Any:
        """`root`'s object (pickled) on every rank; TypeError on every rank when it cannot be pickled."""
        thing = self._with_pickle(functools.partial(self.mpi.bcast, root=root), thing)
        if isinstance(thing, _NoPickle):
            raise TypeError(f"broadcast_object: rank {root} has {thing.text}")
        return thing

    def _with_pickle(self, exchange: Callable[[Any], Any], thing: Any) -> Any:
        """`exchange(thing)`; with a `_NoPickle` in its place if it cannot be pickled, since the others wait for it."""
        try:
            return exchange(thing)
        except MPI.Exception:
            raise
        except Exception:
            try:
                MPI.pickle.dumps(thing)
            except Exception as error:
                return exchange(_NoPickle(f"{_article(type(thing).__name__)}, which cannot be pickled ({error})"))
            raise

    # -- who has how much ------------------------------------------------------------------------------------------
    def _shares(self, length: int, sizes: Sizes) -> Sequence[int]:
        if sizes is None:
            return partition.shares(length, self.size)
        if len(sizes) != self.size or sum(sizes) != length or min(sizes) < 0:
            raise ValueError(f"sizes {list(sizes)} do not cut a length of {length} into {self.size} shares")
        return sizes

    def _lengths(self, length: int, sizes: Sizes) -> Sequence[int]:
        if sizes is None:
            return self.mpi.allgather(length)
        if len(sizes) != self.size or sizes[self.rank] != length:
            raise ValueError(f"sizes {list(sizes)}, but rank {self.rank} of {self.size} has a length of {length}")
        return sizes


class _NoPickle:
    """Stands for an object that cannot be sent, and says which it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


class Pending:
    """A send or receive under way; keeps its array alive. If `into` is another array, what arrives is put into it."""

    def __init__(
        self,
        array: Array,
        flat: list[Array],
        requests: list[Any],
        source: int | None = None,
        into: Array | None = None,
        decode: Callable[[Array, Array], Array] = lambda array, _: array,
    ) -> None:
        self._decode = decode
        self._array = array
        self._flat = flat
        self._requests = requests
        self._source = source
        self._into = array if into is None else into

    def wait(self) -> Array:
        """Returns the array when it may be used again; ValueError if less was received than it holds."""
        status = MPI.Status()
        for request, piece in zip(self._requests, self._flat):
            request.Wait(status)
            if self._source is not None:
                _check_length(status, piece, self._source)
        if self._requests and self._into is not self._array:
            self._into[...] = self._decode(self._array, self._into)
        self._requests = []
        return self._into

    def test(self) -> bool:
        """Whether `wait` would return at once."""
        return all(request.Get_status() for request in self._requests)


def _check_length(status: MPI.Status, piece: Array, source: int) -> None:
    received = status.Get_count(MPI.BYTE)
    if received != piece.nbytes:
        raise ValueError(f"expected {number_of(piece.nbytes, 'byte')} from rank {source}, received {received}")


def _overlap(a: slice, b: slice) -> slice | None:
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else None


def _within(part: slice, whole: slice) -> slice:
    """`part`, counted from the start of `whole`."""
    return slice(part.start - whole.start, part.stop - whole.start)


def _along(array: Array, axis: int, part: slice) -> Array:
    return array[(slice(None),) * axis + (part,)]


def _with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return (*shape[:axis], length, *shape[axis + 1 :])


def _product(shape: Sequence[int], without: Sequence[int] = ()) -> int:
    product = 1
    for axis, length in enumerate(shape):
        if axis not in without:
            product *= length
    return product


def _row(array: Array) -> int:
    """Values on the wire per row, a row being what one index of axis 0 selects."""
    return _product(array.shape[1:]) * buffers.units(array.dtype)


@functools.cache
def world() -> Communicator:
    """All ranks that were started together. (Collective when first called in checked mode.)"""
    return Communicator(MPI.COMM_WORLD, name="world")


@functools.cache
def alone() -> Communicator:
    """This rank and no other."""
    return Communicator(MPI.COMM_SELF, name="alone")

"""Checked mode: before each collective the ranks compare what they are about to call.

MPI reports nothing when ranks call different collectives: with sizes that happen to match the result is silently
wrong, else the program waits for ever. Here every rank first sends one line of text, its fingerprint, to all others
over a private communicator, and all raise `CollectiveMismatch` unless the lines are equal. A rank whose program ends
sends "has ended": the others, if they are still calling something, hear of it instead of waiting.

A message from one rank to another is preceded by a note over the same private communicator, of its dtype and its number
of values: bytes alone do not tell 4 float64 from 8 float32. The receiver compares, receives the message in any case,
and raises `MessageMismatch`. So both ends must call this communicator, not mpi4py's beneath it.

The checks of collectives use non-blocking calls only: a rank posts the one for its end on all its communicators at
once, so that ranks which share several communicators cannot wait for each other in a circle.
"""

from __future__ import annotations

import atexit
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from parallel_dl.errors import number_of
from parallel_dl.mpi.buffers import Array, native
from parallel_dl.mpi.communicator import Communicator, Pending, Sizes
from parallel_dl.mpi.ledger import Ledger
from parallel_dl.mpi.notes import Note, Noted
from parallel_dl.mpi.startup import MPI

_LINE = 256  # bytes of a fingerprint
_ENDED = "has ended"

PATIENCE = 10.0  # seconds after which a waiting rank says where it waits

# Whoever is in here says so when the program ends. Strong references: a communicator that one rank has dropped and
# another has not must still be told of.
_open: list[_Checks] = []


class CollectiveMismatch(RuntimeError):
    """The ranks did not call the same collective; raised on all of them, and nothing was communicated."""


class MessageMismatch(CollectiveMismatch, ValueError):
    """A receive names a dtype or number of values other than what was sent; raised by the receiver."""


class _Checks:
    """The private communicator of a checked one, and how far it is: the same for all labels of that one."""

    def __init__(self, mpi: MPI.Intracomm) -> None:
        self.private = MPI.Intracomm(mpi).Dup()
        self.size = mpi.size
        self.calls = 0
        self.ended: str | None = None  # who, once a rank's program has ended

    def start(self, line: str) -> tuple[Any, Array, Array]:
        """Begins to exchange the ranks' lines: the request, this rank's line and all ranks' lines."""
        text = line.encode()
        if len(text) > _LINE:  # equal lines stay equal, different ones different
            text = text[: _LINE - 12] + b"... %08x" % zlib.crc32(text)
        own = np.frombuffer(text.ljust(_LINE, b"\0"), np.uint8)
        all_lines = np.empty((self.size, _LINE), np.uint8)
        return self.private.Iallgather(own, all_lines), own, all_lines


class CheckedCommunicator(Communicator):
    """A communicator that compares the ranks' calls before it makes them. Made, and freed, by all ranks together."""

    checked = True

    def __init__(
        self,
        mpi: Any,
        checked: bool | None = None,
        name: str | None = None,
        ledger: Ledger | None = None,
        axis: str | None = None,
    ) -> None:
        super().__init__(mpi, name=name, ledger=ledger, axis=axis)
        if self.size > 1:
            self._checks = _Checks(mpi)
            if not _open:
                atexit.register(_announce_ends)
            _open.append(self._checks)

    def announce(self, call: str, *facts: Any) -> None:
        """Raises CollectiveMismatch on every rank unless all announce the same call and facts."""
        if self.size == 1:
            return
        checks = self._checks
        if checks.ended is not None:
            raise CollectiveMismatch(f"{checks.ended}, so {call} cannot be called on {self.name!r}")
        checks.calls += 1
        listed = ", ".join(str(fact) for fact in facts)
        line = f"calls {call} #{checks.calls}" + (f" ({listed})" if listed else "")
        self._compare(*checks.start(line))

    def _compare(self, request: Any, own: Array, all_lines: Array) -> None:
        self._wait(request, own)
        if (all_lines == own).all():
            return
        lines = [bytes(line).rstrip(b"\0").decode(errors="replace") for line in all_lines]
        ended = [rank for rank, line in enumerate(lines) if line == _ENDED]
        if ended:
            self._checks.ended = f"{_who(ended)} {'has' if len(ended) == 1 else 'have'} ended"
            _forget(self._checks)
        sides = []
        for line in dict.fromkeys(lines):
            ranks = [rank for rank, other in enumerate(lines) if other == line]
            verb = line if len(ranks) == 1 else line.replace("calls", "call", 1).replace("has ended", "have ended")
            sides.append(f"{_who(ranks)} {verb}")
        raise CollectiveMismatch(f"on communicator {self.name!r}: {sides[0]} but {', '.join(sides[1:])}")

    def _wait(self, request: Any, own: Array) -> None:
        """Waits, and says so when it takes long: ranks that call different communicators never meet."""
        for _ in range(1000):
            if request.Test():
                return
        noticed = time.monotonic() + PATIENCE
        while not request.Test():
            time.sleep(1e-4)
            if time.monotonic() > noticed:
                line = bytes(own).rstrip(b"\0").decode(errors="replace")
                waited = f"on communicator {self.name!r} and has waited {PATIENCE:g} s for the others"
                print(f"rank {self.rank} {line} {waited}", file=sys.stderr, flush=True)
                request.Wait()

    # -- the communicator itself -----------------------------------------------------------------------------------
    def duplicate(self, name: str | None = None, checked: bool = True) -> Communicator:
        self.announce("duplicate")
        return super().duplicate(name, checked)

    def split(self, color: int | None, key: int = 0, name: str | None = None, axis: str | None = None) -> Self | None:
        self.announce("split")
        return super().split(color, key, name, axis)

    def free(self) -> None:
        if self.size > 1:
            if self._checks.ended is not None:
                return
            self.announce("free")
            _forget(self._checks)
            self._checks.private.Free()
        super().free()

    @property
    def is_one_node(self) -> bool:
        if self._shared.one_node is None:
            self.announce("is_one_node")
        return super().is_one_node

    def barrier(self) -> None:
        self.announce("barrier")
        super().barrier()

    # -- reductions ------------------------------------------------------------------------------------------------
    def all_reduce(self, array: Array, op: str = "sum", out: Array | None = None) -> Array:
        self.announce("all_reduce", op, *_kind(array), *_misfit(out, array))
        return super().all_reduce(array, op, out)

    def start_all_reduce(self, array: Array, op: str = "sum") -> Pending:
        usable = array.flags.c_contiguous and array.flags.writeable
        self.announce("start_all_reduce", op, *_kind(array), *([] if usable else ["not writable and C-contiguous"]))
        return super().start_all_reduce(array, op)

    def reduce(self, array: Array, root: int = 0, op: str = "sum") -> Array | None:
        self.announce("reduce", op, f"root {root}", *_kind(array))
        return super().reduce(array, root, op)

    def reduce_scatter(self, array: Array, axis: int = 0, sizes: Sizes = None) -> Array:
        self.announce("reduce_scatter", f"axis {axis}", *_given(sizes=sizes), *_kind(array))
        return super().reduce_scatter(array, axis, sizes)

    # -- slices along one axis -------------------------------------------------------------------------------------
    def shard_sizes(self, size: int) -> list[int]:
        self.announce("shard_sizes")
        return super().shard_sizes(size)

    def all_gather(self, array: Array, axis: int = 0, sizes: Sizes = None) -> Array:
        facts = (*_given(sizes=sizes), *_kind(array, axis), *self._own_size(array, axis, sizes))
        self.announce("all_gather", f"axis {axis}", *facts)
        return super().all_gather(array, axis, sizes)

    def gather(self, array: Array, root: int = 0, axis: int = 0, sizes: Sizes = None) -> Array | None:
        facts = (*_given(sizes=sizes), *_kind(array, axis), *self._own_size(array, axis, sizes))
        self.announce("gather", f"root {root}", f"axis {axis}", *facts)
        return super().gather(array, root, axis, sizes)

    def scatter(self, array: Array | None, root: int = 0, axis: int = 0, sizes: Sizes = None) -> Array:
        self.announce("scatter", f"root {root}", f"axis {axis}", *_given(sizes=sizes))
        return super().scatter(array, root, axis, sizes)

    def all_to_all(
        self, array: Array, split_axis: int, concat_axis: int, split_sizes: Sizes = None, concat_sizes: Sizes = None
    ) -> Array:
        given = _given(split_sizes=split_sizes, concat_sizes=concat_sizes)
        facts = (f"split axis {split_axis}", f"concat axis {concat_axis}", *given, *_kind(array, concat_axis))
        self.announce("all_to_all", *facts, *self._own_size(array, concat_axis, concat_sizes))
        return super().all_to_all(array, split_axis, concat_axis, split_sizes, concat_sizes)

    def exchange_slices(self, array: Array, axis: int, owned: Sequence[slice], wanted: Sequence[slice]) -> Array:
        self.announce("exchange_slices", *_slice_facts(array, axis, owned, wanted))
        return super().exchange_slices(array, axis, owned, wanted)

    def return_slices(self, array: Array, axis: int, owned: Sequence[slice], wanted: Sequence[slice]) -> Array:
        self.announce("return_slices", *_slice_facts(array, axis, owned, wanted))
        return super().return_slices(array, axis, owned, wanted)

    # -- copies ----------------------------------------------------------------------------------------------------
    def broadcast(
        self, array: Array | None, root: int = 0, shape: tuple[int, ...] | None = None, dtype: Any = None
    ) -> Array:
        self.announce("broadcast", f"root {root}", *_given(shape=shape, dtype=None if dtype is None else native(dtype)))
        return super().broadcast(array, root, shape, dtype)

    # -- from one rank to another ----------------------------------------------------------------------------------
    def send(self, array: Array, destination: int, tag: int = 0) -> None:
        if self.size == 1:
            return super().send(array, destination, tag)
        note = Note.of(array)
        told = self._checks.private.Isend(note.line, destination, tag)
        super().send(array, destination, tag)
        told.Wait()
        return None

    def isend(self, array: Array, destination: int, tag: int = 0) -> Pending:
        if self.size == 1:
            return super().isend(array, destination, tag)
        note = Note.of(array)
        told = self._checks.private.Isend(note.line, destination, tag)
        return Noted(super().isend(array, destination, tag), told, note)

    def receive(self, source: int, shape: tuple[int, ...] = (), dtype: Any = np.float32, tag: int = 0) -> Array:
        if self.size == 1:
            return super().receive(source, shape, dtype, tag)
        note, status = Note(), MPI.Status()
        self._checks.private.Recv(note.line, source, tag, status)
        source, tag = status.Get_source(), status.Get_tag()  # also where any would do
        mismatch = self._mismatch(note, np.empty(shape, dtype), source, tag)
        if mismatch is not None:
            super().receive(source, (note.count,), note.travels_as, tag)
            raise mismatch
        return super().receive(source, shape, dtype, tag)

    def ireceive(self, array: Array, source: int, tag: int = 0) -> Pending:
        pending = super().ireceive(array, source, tag)
        if self.size == 1 or source == MPI.ANY_SOURCE or tag == MPI.ANY_TAG:  # whose note it is nobody could tell
            return pending
        note = Note()
        told = self._checks.private.Irecv(note.line, source, tag)
        return Noted(pending, told, note, lambda: self._mismatch(note, array, source, tag))

    def _mismatch(self, note: Note, array: Array, source: int, tag: int) -> MessageMismatch | None:
        """What is wrong if the note says what is sent and `array` is to receive it."""
        expected = Note.of(array)
        if source == MPI.PROC_NULL or (note.values, note.kind) == (expected.values, expected.kind):
            return None
        wanted, sent = number_of(array.nbytes, "byte"), number_of(note.bytes, "byte")
        return MessageMismatch(
            f"expected {wanted} from rank {source}, {expected.values:,} {expected.kind}, but it sends "
            f"{sent}, {note.values:,} {note.kind} (to rank {self.rank} on {self.name!r}, tag {tag})"
        )

    def shift(self, array: Array, offset: int, cyclic: bool = True, shape: tuple[int, ...] | None = None) -> Array:
        told = "shapes exchanged" if shape is None else "shapes known"
        dtype = native(np.asarray(array).dtype)
        self.announce("shift", f"offset {offset}", "cyclic" if cyclic else "not cyclic", told, dtype)
        return super().shift(array, offset, cyclic, shape)

    def _own_size(self, array: Any, axis: int, sizes: Sizes) -> list[str]:
        """A fact of this rank alone, where its array is not as long as `sizes` says: all then refuse the call."""
        shape = np.shape(array)
        if sizes is None or not -len(shape) <= axis < len(shape):
            return []
        own = sizes[self.rank] if self.rank < len(sizes) else None
        return [] if shape[axis] == own else [f"length {shape[axis]}"]

    def all_gather_object(self, thing: Any) -> list[Any]:
        self.announce("all_gather_object")
        return super().all_gather_object(thing)

    def broadcast_object(self, thing: Any, root: int = 0) -> Any:
        self.announce("broadcast_object", f"root {root}")
        return super().broadcast_object(thing, root)


def _kind(array: Any, free_axis: int | None = None) -> tuple[str, str]:
    """dtype and shape, without the length of the axis along which it may differ between the ranks."""
    array = np.asarray(array)
    lengths: list[Any] = list(array.shape)
    if free_axis is not None and -len(lengths) <= free_axis < len(lengths):
        lengths[free_axis] = "any"
    inner = ", ".join(str(length) for length in lengths) + ("," if len(lengths) == 1 else "")
    return _type_name(array.dtype), f"shape ({inner})"


def _given(**facts: Any) -> list[str]:
    shown = {name: list(fact) if isinstance(fact, (list, tuple)) else fact for name, fact in facts.items()}
    return [f"{name} {fact}" for name, fact in shown.items() if fact is not None]


def _misfit(out: Array | None, array: Any) -> list[str]:
    """A fact of this rank alone, where its `out` is not made for the result: all then refuse the call."""
    array = np.asarray(array)
    fits = out is None or (out.shape == array.shape and native(out.dtype) == native(array.dtype))
    return [] if fits or out is None else [f"out {out.dtype} {out.shape}"]


def _type_name(dtype: np.dtype) -> str:
    """A type by name, whatever its byte order: all travel in the same."""
    return str(native(dtype))


def _slice_facts(array: Any, axis: int, owned: Sequence[slice], wanted: Sequence[slice]) -> list[str]:
    ranges = [" ".join(f"{part.start}:{part.stop}" for part in parts) for parts in (owned, wanted)]
    return [f"axis {axis}", *_kind(array, axis), f"owned {ranges[0]}", f"wanted {ranges[1]}"]


def _who(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 4 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return "ranks " + ", ".join(map(str, ranks[:-1])) + f" and {ranks[-1]}"


# -- the end of the program ----------------------------------------------------------------------------------------
def _forget(checks: _Checks) -> None:
    if checks in _open:
        _open.remove(checks)


def _announce_ends() -> None:
    """Tells every rank that shares a checked communicator with this one; waits for them, as MPI_Finalize does."""
    if MPI.Is_finalized():
        return
    waiting = [checks.start(_ENDED) for checks in _open]
    _open.clear()
    MPI.Request.Waitall([request for request, _, _ in waiting])

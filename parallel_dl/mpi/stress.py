"""Stress mode: each MPI call may find the other ranks early or late, and what is not complete yet is not a number.

A program whose ranks do not wait where they have to is usually right by luck: on an idle machine the others are always
there in time. Here, around every call, some rank of the communicator, chosen by a seed, sleeps until the others have
gone as far as they can without it: they are inside a later call, or wait in the same one.

What arrives without blocking arrives in a hidden buffer, and the program's own is poisoned until `wait`: with NaN, or
with a whole number that nobody uses. So a value that is read too early is noticed, however fast the message was. It is
also a race (`RaceFound`) when a buffer is written to while MPI sends it or receives into it, and when nobody waits for
it. Shared windows are poisoned outside their sums (`stressed_window`).

It is on inside `stressed(comm, seed)`, or in a whole program by PARALLEL_DL_STRESS=SEED. Communicators that are made
from then on, and what is made of them, are `Stressed`; without it there is none, and nothing is done.
"""

from __future__ import annotations

import atexit
import os
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from parallel_dl.errors import InputError, cut
from parallel_dl.mpi.places import POLL, Places
from parallel_dl.mpi.rank import mine
from parallel_dl.mpi.startup import MPI

VARIABLE = "PARALLEL_DL_STRESS"

_LEFT = 1.0  # seconds for what nobody has waited for to complete


class RaceFound(RuntimeError):
    """A buffer was used, or given up, while MPI still had it."""


class _Own:
    """What a rank has of it."""

    def __init__(self) -> None:
        self.active: _Stress | None = None
        self.places: Places | None = None  # once for the rank
        self.abandoned: list[_Request] = []  # MPI may still write into their memory
        # the window that was freed last on each communicator, by its handle: who reads it too late finds it poisoned
        self.freed: dict[int, Callable[[], None]] = {}


def _active() -> _Stress | None:
    return mine(_Own).active


class _Stress:
    """What this rank does under one seed."""

    def __init__(self, seed: int, collects: bool) -> None:
        own = mine(_Own)
        self.places = own.places = own.places or Places()
        self.seed = seed
        self.random = random.Random(f"{seed} {MPI.COMM_WORLD.rank}")
        self.found: list[str] | None = [] if collects else None
        self.under_way: list[_Request] = []

    def report(self, race: str) -> None:
        """A race, of this rank: kept for `races`, or raised."""
        if self.found is None:
            raise RaceFound(race)
        if race not in self.found:
            self.found.append(race)

    @contextmanager
    def around(self, comm: Stressed, together: bool, waits: bool) -> Iterator[None]:
        """Around a call, which `waits` for others: delays, and a look at all that is under way.

        `together`: all ranks of `comm` call it, and one of them at most is late.
        """
        for request in self.under_way:
            request.look()
        if together:
            drawn = self._draw(comm)
            late = drawn // 16 % comm.size == comm.rank
            before, after = late and drawn % 16 == 0, late and drawn % 16 in (1, 2, 3, 4)
        else:
            drawn = self.random.randrange(16)
            before, after = drawn == 0, drawn in (1, 2)
        if before:
            self.places.wait_for(comm.others)
        if waits:
            with self.places.inside():
                yield
        else:
            yield
        if after:
            self.places.wait_for(comm.others)

    def pause(self, comm: Stressed) -> None:
        """Between two calls of all ranks of `comm`: one of them sleeps."""
        if self._draw(comm) % comm.size == comm.rank:
            self.places.wait_for(comm.others)

    def _draw(self, comm: Stressed) -> int:
        """The next number, the same on all ranks of `comm`."""
        comm.calls += 1
        return zlib.crc32(f"{self.seed} {comm.size} {comm.calls}".encode())

    def end(self, comm: Stressed | None = None) -> None:
        """Reports what was never waited for, of `comm` or of all, and completes it if it can be."""
        left = [request for request in self.under_way if comm is None or request.comm == comm]
        for request in left:
            request.look()
            self.report(f"{request.what} was never waited for")
        end = time.monotonic() + _LEFT
        while time.monotonic() < end and not all(request.Test() for request in left):
            time.sleep(POLL)
        mine(_Own).abandoned.extend(request for request in left if request.buffer is not None)
        self.under_way = [request for request in self.under_way if not any(request is one for one in left)]


def seed_of(text: str, what: str) -> int:
    """A seed that was given as text; InputError if it is not one."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise InputError(f"{what}{cut(text)}: must be a whole number in 0..2**63-1")
    return int(text)


def install() -> None:
    """All ranks together: stress for the whole program, if the environment asks for it."""
    own = mine(_Own)
    if os.environ.get(VARIABLE, "") and own.active is None:
        seed = seed_of(os.environ[VARIABLE], f"{VARIABLE}=")
        if MPI.COMM_WORLD.size > 1:
            own.active = _Stress(seed, collects=False)
            atexit.register(_say_what_is_left, own)


def _say_what_is_left(own: _Own) -> None:
    for request in own.active.under_way if own.active is not None else ():
        line = f"parallel-dl: rank {MPI.COMM_WORLD.rank}: {request.what} was never waited for\n"
        sys.stderr.write(line)


@contextmanager
def stressed(comm: Any, seed: int) -> Iterator[Any]:
    """Inside, stress is on, with this seed; gives a communicator of the same ranks that is under it. Collective."""
    own = mine(_Own)
    before, active = own.active, _Stress(seed, collects=True)
    own.active = active
    late = comm._with_calls_to(under_stress(comm.mpi, comm.name))
    try:
        yield late
        _give_back_windows(own)
    finally:
        late._go_over(comm.mpi)  # who still has it is to know when that is freed
        own.abandoned.extend(active.under_way)
        own.active = before


def collects() -> bool:
    """Whether races are kept for `races`."""
    active = _active()
    return active is not None and active.found is not None


def races(comm: Any, *also: str) -> list[str]:
    """The races of all ranks of `comm` since it was last asked, and what they name `also`. All ranks together."""
    active = _active()
    assert active is not None
    assert active.found is not None
    active.end()
    found, active.found = [*active.found, *also], []
    return [f"rank {rank}: {race}" for rank, of_rank in enumerate(comm.all_gather_object(found)) for race in of_rank]


def under_stress(mpi: Any, name: str) -> Any:
    """The same communicator, `Stressed` if stress is on and it has several ranks."""
    if mpi.size > 1 and not isinstance(mpi, Stressed) and _active() is not None:
        mpi = Stressed(mpi)
    if isinstance(mpi, Stressed):
        mpi.known_as = name
    return mpi


class Stressed(MPI.Intracomm):
    """The same communicator as the one it is made from, whose calls come early or late, and show their buffers late.

    Wait for the requests of its non-blocking calls one by one, by their own `Wait` or `Test`.
    """

    calls = 0
    known_as = ""
    """the name that errors have for it"""
    _others: list[int] | None = None

    @property
    def others(self) -> list[int]:
        """The other ranks' numbers in the world."""
        if self._others is None:
            here = self.Get_group()
            ranks = MPI.Group.Translate_ranks(here, list(range(self.size)), MPI.COMM_WORLD.Get_group())
            self._others = [rank for rank in ranks if rank != MPI.COMM_WORLD.rank]
        return self._others

    @contextmanager
    def delayed(self, together: bool = True, waits: bool = True) -> Iterator[None]:
        """Around a call."""
        active = _active()
        if active is None or self.size == 1:  # within `one_rank`
            yield
            return
        with active.around(self, together, waits):
            yield

    def pause(self) -> None:
        """Between two calls of all ranks: one of them is late for the second."""
        active = _active()
        if active is not None and self.size > 1:
            active.pause(self)

    def Free(self) -> None:
        active = _active()
        if active is not None:
            active.end(self)
        give_back_window(self)
        super().Free()

    def Barrier(self) -> None:
        self.pause()
        with self.delayed():
            super().Barrier()
        self.pause()

    def Send(self, buf: Any, dest: int, tag: int = 0) -> None:
        with self.delayed(together=False):
            super().Send(buf, dest, tag)

    def Recv(self, buf: Any, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG, status: Any = None) -> None:
        if _active() is not None and source != MPI.PROC_NULL:
            poison(buf)
        with self.delayed(together=False):
            super().Recv(buf, source, tag, status)

    def sendrecv(self, *arguments: Any, **options: Any) -> Any:
        with self.delayed(together=False):
            return super().sendrecv(*arguments, **options)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> MPI.Request:
        with self.delayed(together=False, waits=False):
            request = super().Isend(buf, dest, tag)
        what = f"a send to rank {dest} on {self.known_as!r}, tag {tag},"
        return request if _active() is None else _under_watch(request).watch(self, what, buf)

    def Irecv(self, buf: Any, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG) -> MPI.Request:
        if _active() is None or source == MPI.PROC_NULL or not isinstance(buf, np.ndarray):
            return super().Irecv(buf, source, tag)
        poison(buf)
        arriving = buf.copy()
        with self.delayed(together=False, waits=False):
            request = super().Irecv(arriving, source, tag)
        return _under_watch(request).watch(
            self, f"a receive from rank {source} on {self.known_as!r}, tag {tag},", buf, arriving
        )

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> MPI.Request:
        if _active() is None or not isinstance(recvbuf, np.ndarray):
            return super().Iallreduce(sendbuf, recvbuf, op)
        arriving = recvbuf.copy()
        poison(recvbuf)
        with self.delayed(waits=False):
            request = super().Iallreduce(sendbuf, arriving, op)
        return _under_watch(request).watch(self, f"an all-reduce on {self.known_as!r}", recvbuf, arriving)


def _delayed(name: str) -> Callable[..., Any]:
    """The collective of that name, with delays around it."""

    def call(self: Stressed, *arguments: Any, **options: Any) -> Any:
        with self.delayed():
            return getattr(super(Stressed, self), name)(*arguments, **options)

    call.__name__ = name
    return call


for _name in (
    *("Allreduce", "Reduce", "Reduce_scatter", "Allgatherv", "Gatherv", "Scatterv", "Alltoallv", "Bcast"),
    *("allgather", "bcast", "allreduce"),
):
    setattr(Stressed, _name, _delayed(_name))


class _Request(MPI.Request):
    """A request whose buffer is watched until it is complete; what has arrived is put there only then."""

    buffer: np.ndarray | None = None

    def watch(self, comm: Stressed, what: str, buffer: Any, arriving: np.ndarray | None = None) -> _Request:
        """`what` names it; the buffer must keep its bytes until it is complete."""
        active = _active()
        if isinstance(buffer, np.ndarray) and active is not None:
            self.comm, self.what, self.buffer, self.arriving = comm, what, buffer, arriving
            self._sum = _checksum(buffer)
            active.under_way.append(self)
        return self

    def look(self) -> None:
        """Reports a buffer that was written to."""
        active = _active()
        if self.buffer is not None and active is not None and _checksum(self.buffer) != self._sum:
            self._sum = _checksum(self.buffer)
            active.report(f"the buffer of {self.what} was written to before its wait")

    def Wait(self, status: Any = None) -> Any:
        with self.comm.delayed(together=False) if self.buffer is not None else _nothing():
            done = super().Wait(status)
        self._complete()
        return done

    def Test(self, status: Any = None) -> bool:
        done = super().Test(status)
        if done:
            self._complete()
        return done

    def _complete(self) -> None:
        if self.buffer is None:
            return
        self.look()
        if self.arriving is not None:
            self.buffer[...] = self.arriving
        self.buffer = None
        active = _active()
        if active is not None and any(self is one for one in active.under_way):
            active.under_way = [one for one in active.under_way if one is not self]


def _under_watch(request: Any) -> _Request:
    """The same request; with what the watchdog knows of it, if it does."""
    watched = _Request(request)
    watched.__dict__.update(request.__dict__ if hasattr(request, "__dict__") else {})
    return watched


def give_back_window(mpi: Any) -> None:
    """All ranks of `mpi`: gives back the memory of the window that was freed last on it."""
    mine(_Own).freed.pop(MPI._handleof(mpi), lambda: None)()


def keep_window(mpi: Any, give_back: Callable[[], None]) -> None:
    """All ranks of `mpi`: keeps the memory of a window that was freed on it until the next one is, or `mpi` itself."""
    own = mine(_Own)
    if not own.freed:
        atexit.register(_give_back_windows, own)
    give_back_window(mpi)
    own.freed[MPI._handleof(mpi)] = give_back


def _give_back_windows(own: _Own) -> None:
    while own.freed and not MPI.Is_finalized():
        own.freed.pop(next(iter(own.freed)))()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def poison(array: np.ndarray) -> None:
    """Fills an array with what cannot be a result: NaN, or a number that nobody uses."""
    kind = array.dtype.kind
    if kind in "fc":
        array.fill(np.nan)
    elif kind in "iu":
        limits = np.iinfo(array.dtype)
        array.fill(limits.min + 0x5A if kind == "i" else limits.max - 0x5A)
    elif array.flags.c_contiguous:
        array.view(np.uint8).fill(kind != "b" and 0xA5)

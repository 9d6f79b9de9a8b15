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
from typing import Any

import numpy as np

from parallel_dl import watchdog
from parallel_dl.errors import number_of
from parallel_dl.launch.tracebacks import place_of_call
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.calls import COLLECTIVE, MESSAGE, Call, Caller, Observer
from parallel_dl.mpi.observers.notes import LINE, Note, Noted, line_of, text_of
from parallel_dl.mpi.rank import mine
from parallel_dl.mpi.startup import MPI
from parallel_dl.mpi.transport import plain
from parallel_dl.watchdog.mismatch import ENDED, CollectiveMismatch, calls_differ
from parallel_dl.watchdog.picture import columns, named

_LAST_CALL = "; last call: "

PATIENCE = 10.0  # seconds after which a waiting rank says where it waits


class MessageMismatch(CollectiveMismatch, ValueError):
    """Raised by the receiver if its dtype or number of values is not what was sent."""


class _Open:
    """The checks of a rank. Whoever is in here says so when the program ends.

    Strong references: a communicator that one rank has dropped and another has not must still be told of.
    """

    def __init__(self) -> None:
        self.checks: list[Checked] = []
        atexit.register(self.announce_ends)

    def forget(self, checks: Checked) -> None:
        if checks in self.checks:
            self.checks.remove(checks)

    def announce_ends(self) -> None:
        """Tells every rank that shares a checked communicator with this one; waits for them, as MPI_Finalize does."""
        if MPI.Is_finalized():
            return
        last = watchdog.last_call()
        waiting = [checks.start(f"{ENDED}{_LAST_CALL}{last}" if last else ENDED) for checks in self.checks]
        self.checks.clear()
        MPI.Request.Waitall([request for request, _, _ in waiting])


class Checked(Observer):
    """Compares the calls on one communicator, under all its labels. Made, and freed, by its ranks together."""

    def __init__(self, mpi: Any) -> None:
        self.private = plain(mpi).Dup()
        self.size = mpi.size
        self.calls = 0
        self.ended: str | None = None  # who, once a rank's program has ended
        self._told: tuple[Any, Array]  # the note of the message that is being sent
        self._watched = watchdog.group_of(mpi)
        self._compared = None if self._watched is None else self._watched.comparisons()
        mine(_Open).checks.append(self)

    def free(self) -> None:
        """Gives the private communicator back."""
        mine(_Open).forget(self)
        self.private.Free()

    def begin(self, call: Call) -> None:
        if call.kind == COLLECTIVE:
            self._compare(call)
        elif call.kind == MESSAGE and call.name in ("send", "isend"):
            line = Note.of(np.asarray(call.arguments["array"]), watchdog.where()).line
            self._told = self.private.Isend(line, call.arguments["destination"], call.arguments["tag"]), line
        elif call.kind == MESSAGE and call.name == "receive":
            self._expect(call)

    def end(self, call: Call) -> None:
        if call.failed or call.kind != MESSAGE:
            return
        if call.name == "send":
            self._told[0].Wait()
        elif call.name == "isend":
            call.result = Noted(call.result, *self._told)
        elif call.name == "ireceive":
            self._note_of(call)

    # -- collectives -------------------------------------------------------------------------------------------------
    def _compare(self, call: Call) -> None:
        """Raises CollectiveMismatch on every rank unless all make the same call with the same facts."""
        if self.ended is not None:
            raise CollectiveMismatch(f"{self.ended}, so {call.name} cannot be called on {call.comm.name!r}")
        self.calls += 1
        line = f"calls {call.name} #{self.calls}" + (f" ({', '.join(call.facts)})" if call.facts else "")
        request, own, all_lines = self.start(line)
        if self._compared is not None:
            self._compared.collectives += 1
            number = self._compared.collectives
            watchdog.begin(call.name, (watchdog.COLLECTIVE, call.name, self._compared, -1, -1, None, number))
        try:
            self._wait(request, own, call.comm)
        finally:
            watchdog.over()
        if (all_lines == own).all():
            return
        lines = [text_of(line) for line in all_lines]
        ended = [rank for rank, line in enumerate(lines) if line.startswith(ENDED)]
        if ended:
            self.ended = f"{named(ended)} {'has' if len(ended) == 1 else 'have'} ended"
            mine(_Open).forget(self)
        places = self._places() if not ended else [line.partition(_LAST_CALL)[2] for line in lines]
        if ended:  # who has ended cannot be asked; each of the others knows its own place
            places[call.comm.rank] = place_of_call()
            lines = [line.partition(_LAST_CALL)[0] for line in lines]
        raise CollectiveMismatch(calls_differ(call.comm.name, lines, places))

    def _places(self) -> list[str]:
        """Where each rank's program made the call; all of them have found that the calls differ, and ask."""
        request, _, all_lines = self.start(place_of_call())
        request.Wait()
        return [text_of(line) for line in all_lines]

    def start(self, line: str) -> tuple[Any, Array, Array]:
        """Begins to exchange the ranks' lines: the request, this rank's line and all ranks' lines."""
        own, all_lines = line_of(line), np.empty((self.size, LINE), np.uint8)
        return self.private.Iallgather(own, all_lines), own, all_lines

    def _wait(self, request: Any, own: Array, comm: Caller) -> None:
        """Waits, and says so when it takes long: ranks that call different communicators never meet."""
        for _ in range(1000):
            if request.Test():
                return
        noticed = time.monotonic() + PATIENCE
        while not request.Test():
            time.sleep(1e-4)
            if time.monotonic() > noticed:
                waited = f"on communicator {comm.name!r} and has waited {PATIENCE:g} s for the others"
                print(f"rank {comm.rank} {text_of(own)} {waited}", file=sys.stderr, flush=True)
                request.Wait()

    # -- messages ----------------------------------------------------------------------------------------------------
    def _expect(self, call: Call) -> None:
        """Receives the note before the message. If it is another message, that one is received, too, and refused."""
        given, line, status = call.arguments, np.empty(LINE, np.uint8), MPI.Status()
        source, tag = given["source"], given["tag"]
        if self._watched is not None:
            watchdog.begin(call.name, (watchdog.RECEIVE, call.name, self._watched, source, tag, None, 0))
        try:
            self.private.Recv(line, source, tag, status)
        finally:
            watchdog.over()
        given["source"], given["tag"] = status.Get_source(), status.Get_tag()  # also where any would do
        wrong = _mismatch(line, np.empty(given["shape"], given["dtype"]), call)
        if wrong is not None:
            note = Note.read(line)
            given |= {"shape": (note.elements,), "dtype": note.travels_as}
            call.make()
            raise wrong

    def _note_of(self, call: Call) -> None:
        source, tag = call.arguments["source"], call.arguments["tag"]
        if source == MPI.ANY_SOURCE or tag == MPI.ANY_TAG:  # whose note it is nobody could tell
            return
        line, array = np.empty(LINE, np.uint8), call.arguments["array"]
        told = self.private.Irecv(line, source, tag)
        call.result = Noted(call.result, told, line, lambda: _mismatch(line, array, call))


def _mismatch(line: Array, array: Array, call: Call) -> MessageMismatch | None:
    """What is wrong if the note in this line says what is sent and `array` is to receive it."""
    expected, comm = Note.of(array), call.comm
    source, tag = call.arguments["source"], call.arguments["tag"]
    if source == MPI.PROC_NULL:
        return None
    note = Note.read(line)
    if note[:-1] == expected[:-1]:
        return None
    wanted, sent = number_of(array.nbytes, "byte"), number_of(note.bytes, "byte")
    here, there = f"{expected.values:,} {expected.kind}", f"{note.values:,} {note.kind}"
    told = (
        f"expected {wanted} from rank {source}, {here}, but it sends {sent}, {there} "
        f"(to rank {comm.rank} on {comm.name!r}, tag {tag})"
    )
    receives = f"rank {comm.rank}", f"receives {here}", place_of_call()
    rows = [receives, (f"rank {source}", f"sends {there}", note.place)]
    return MessageMismatch("\n".join([told, *columns(rows)]) if note.place else told)

"""How an incomplete job ended: which rank was first, and what is known about it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from parallel_dl.launch.job import Job
from parallel_dl.launch.pages import Said, end_in, not_started_in
from parallel_dl.launch.rank import INTERRUPTED
from parallel_dl.launch.tracebacks import CALLS_DIFFER, FULL_VARIABLE, MISMATCHES, lines_of_stack
from parallel_dl.watchdog import State, Watchdog
from parallel_dl.watchdog.picture import positions
from parallel_dl.watchdog.watchdog import ENDS, STATE

_ATTENDANT_SECONDS = 1.0  # within which a lost rank's attendant tells how it ended
_PASSING_SECONDS = 0.2  # for mpirun to pass on what ranks have printed
_POSITION_SECONDS = 1.0  # for the ranks to say where they are
_LATE_SECONDS = 2.0  # within which all ranks notice that a time limit is over
_PAGE_SECONDS = 1.0  # within which mpirun says that a rank has called MPI_Abort
_MPIRUN_SECONDS = 0.5  # within which it is seen that mpirun itself was killed
_DEADLY = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGTERM}

# what the libraries write when a rank calls MPI_Abort, or when MPI does so after an error: MPICH, Open MPI
# Open MPI gives the rank in the communicator that was aborted, which may have another number in the world
_ABORTED = re.compile(
    rb"""Abort\(-?\d+\)\ on\ node\ (\d+)\ \(rank
       | MPI_ABORT\ was\ invoked\ on\ rank\ (?:(\d+)\ in\ communicator\ MPI_COMM_WORLD\b
                                           | \d+\ in\ communicator\ .*\n\ +Proc:\ \[\[\d+,\d+\],(\d+)\])
       | \*\*\*\ An\ error\ occurred\ in\ .*\n.*\*\*\*\ reported\ by\ process\ \[\d+,(\d+)\]
    """,
    re.VERBOSE,
)
_MISMATCH = re.compile(rf"\S*\.({'|'.join(MISMATCHES)}): (.*)")
_ERROR = re.compile(rb"(?:Fatal error in (?:internal_)?|\*\*\* An error occurred in MPI_)(\w+)")


class End(NamedTuple):
    """One line, without a full stop, the exit status, and the lines that ranks have left to be shown."""

    line: str
    status: int
    text: Sequence[str] = ()


def signal_name(number: int) -> str:
    """SIGTERM, or the number where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"signal {number}"


def failed(job: Job, rank: int, what: str, text: str, status: int) -> End:
    """A rank has reported how it failed; if it was interrupted, other ranks may have been, too."""
    others: dict[int, tuple] = {}
    deadline = time.monotonic() + _PASSING_SECONDS  # mpirun also passes on what the ranks have printed
    while (left := deadline - time.monotonic()) > 0:
        others.update({event.rank: event.content for event in job.events(left) if event.kind == "failed"})
    if what == INTERRUPTED and any(other == what for other, _, _ in others.values()):
        interrupted = sorted([rank, *(r for r, (other, _, _) in others.items() if other == what)])
        return End(f"ranks {', '.join(map(str, interrupted))} were interrupted (SIGINT)", status)
    if FULL_VARIABLE not in job.variables and (mismatch := _mismatch(text)) is not None:
        return mismatch
    lines = _of_rank(rank, text.splitlines())
    return End(f"rank {rank} {what}", status or 1, lines)


def _mismatch(text: str) -> End | None:
    """Ranks have found that their calls differ: what they call, side by side, in place of a traceback of each."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        found = _MISMATCH.match(line)
        if found is not None and lines[place + 1 :]:
            return End(f"{found[1]}: {found[2]}", 1, lines[place + 1 :])
    return None


def late(job: Job, rank: int, line: str, where: str) -> End:
    """A rank has said that a time limit is over, and where it is; the others say so, too."""
    places = {rank: where}
    deadline = time.monotonic() + _LATE_SECONDS
    while len(places) < job.ranks and (left := deadline - time.monotonic()) > 0:
        places.update({event.rank: event.content[1] for event in job.events(left) if event.kind == "late"})
    said = [f"rank {r} {places.get(r, 'does not say')}" for r in range(job.ranks)]
    return End(f"{line}: {'; '.join(said)}", 1)


def positions_of(job: Job, watchdog: Watchdog) -> list[str]:
    """Where every rank is, in lines of text; of one that does not answer, since C code runs there, from its stack."""
    states: dict[int, State] = {}
    job.send((STATE, 0))
    deadline = time.monotonic() + _POSITION_SECONDS
    while job.pids.keys() - states.keys() - watchdog.ended.keys() and (left := deadline - time.monotonic()) > 0:
        for event in job.events(left):
            if event.kind == STATE:
                states[event.rank] = event.content[1]
            elif event.kind == ENDS:
                watchdog.hear(event.rank, event.kind, event.content)
    silent = [rank for rank in job.pids if rank not in states and rank not in watchdog.ended]
    stacks = job.stacks() if silent else {}
    for rank in silent:
        frames = tuple(lines_of_stack(stacks.get(rank, "")))
        states[rank] = State(rank, -1, 0.0, where=frames[0] if frames else "", frames=frames)
    return positions({**states, **watchdog.ended}, watchdog.ended)


def _of_rank(rank: int, lines: Iterable[str]) -> list[str]:
    return [f"rank {rank}: {line}" for line in lines]


def lost(job: Job, rank: int, ended: Iterable[int], said: Callable[[], bytes]) -> End:
    """A rank ended without a completion record: its attendant knows how, or mpirun may. `said()` is what MPI wrote."""
    deadline = time.monotonic() + _ATTENDANT_SECONDS
    while rank not in job.exits and time.monotonic() < deadline and job.mpirun.poll() is None:
        list(job.events(0.02))
    list(job.events(0.1))
    if rank not in job.exits or job.exits[rank].told:  # mpirun's answer to another's end, or its own
        by_itself = [r for r, end in job.exits.items() if r not in ended and not end.told]
        unknown = [r for r in range(job.ranks) if r not in job.exits and r not in ended]  # died with its attendant
        rank = (by_itself or unknown or [rank])[0]
    if rank in job.exits and not job.exits[rank].told:
        code = job.exits[rank].code
        if code < 0:
            return End(f"rank {rank} was killed by {signal_name(-code)}", 128 - code, _of_rank(rank, job.crash(rank)))
        deadline = time.monotonic() + _PAGE_SECONDS  # a rank that aborts may end before mpirun's words are here
        while (aborted := _aborted(said())) is None and time.monotonic() < deadline and job.mpirun.poll() is None:
            list(job.events(0.02))
        if aborted is not None or (aborted := _aborted(said())) is not None:
            return aborted._replace(status=code or 1)
        return End(f"rank {rank} ended with status {code} without completing (os._exit or a crash)", code or 1)
    return ended_by_mpirun(job, rank, said)


def ended_by_mpirun(job: Job, rank: int, said: Callable[[], bytes]) -> End:
    """The ranks were ended by mpirun, or with it: was it killed, told to end, or asked to by a rank?"""
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.mpirun.wait(_MPIRUN_SECONDS)
    code = job.mpirun.returncode
    if code is not None and code < 0:
        return End(f"mpirun was killed by {signal_name(-code)}, and the ranks ended with it", 128 - code)
    text = said()
    if (aborted := _aborted(text)) is not None:
        return aborted._replace(status=code or 1)
    if (end := not_started(text)) is not None:
        return end
    if (said_of := end_in(text)) is not None:
        return _as_said(job, said_of)
    number = _signal_of(code or 0, text, job.is_hydra)
    told = [-end.code for end in job.exits.values() if end.told and end.code < 0]
    if number in _DEADLY and rank not in job.exits and number not in told:
        return End(f"rank {rank} was killed by {signal_name(number)}", 128 + number, _of_rank(rank, job.crash(rank)))
    if told:
        return End("mpirun was told to end by a signal (SIGTERM, SIGINT or SIGHUP)", 128 + told[0])
    known = f" with status {code}" if code else ""
    before = f"rank {rank} had completed (MPI_Abort or a crash)" if job.pids else "any rank had started"
    return End(f"mpirun ended{known} before {before}", code or 1)


def _signal_of(code: int, said: bytes, is_hydra: bool) -> int:
    """The signal in mpirun's status: Open MPI gives 128 + its number, MPICH the number, and writes what it is.

    A bare number is no signal: MPICH's status after an error in MPI is the error's class, of which 6 is MPI_ERR_RANK.
    """
    if code > 128:
        return code - 128
    return code if is_hydra and b"(signal %d)" % code in said else 0


def ended_after_completion(job: Job, said: Callable[[], bytes]) -> End:
    """All ranks have completed, and mpirun says that one of them has failed after that."""
    code = job.mpirun.returncode or 1
    if code < 0:
        return End(f"mpirun was killed by {signal_name(-code)} after all ranks had completed", 128 - code)
    text = said()
    if (aborted := _aborted(text)) is not None:
        return aborted._replace(status=code)
    if (said_of := end_in(text)) is not None:
        return _as_said(job, said_of, "after it had completed")
    return End(f"mpirun ended with status {code} after all ranks had completed (MPI_Abort or a crash)", code)


def _as_said(job: Job, said: Said, when: str = "before it had started") -> End:
    if said.signal:
        line = f"rank {said.rank} was killed by {signal_name(said.signal)}"
        return End(line, 128 + said.signal, _of_rank(said.rank, job.crash(said.rank)))
    how = f"status {said.code}" if said.code else "status 0, without MPI_Finalize,"
    return End(f"rank {said.rank} ended with {how} {when}", said.code or 1)


def not_started(said: bytes) -> End | None:
    """A rank said, through mpirun, why it did not start; MPICH's mpirun then goes on with the others."""
    line = not_started_in(said)
    if line is None:
        return None
    return End(line, 128 + signal.SIGINT if "interrupted" in line.partition(":")[0] else 1)


def _aborted(said: bytes) -> End | None:
    """A rank called MPI_Abort, or MPI did so after an error in it: its line, with status 1."""
    found = _ABORTED.search(said)
    if found is None:
        return None
    rank = int(next(filter(None, found.groups())))
    error = _ERROR.search(said, found.start())
    if error is None:
        return End(f"rank {rank} called MPI_Abort", 1)
    call = error[1].decode().removesuffix("_c")
    if b" truncated" in said[found.start() :]:
        return End(f"rank {rank} received more than it asked for in {call}: {CALLS_DIFFER}", 1)
    return End(f"rank {rank} was ended by MPI after an error in {call}", 1)

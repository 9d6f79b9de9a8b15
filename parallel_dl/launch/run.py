"""Runs a program on N ranks and says, for a shell, how it ended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping

from parallel_dl.errors import InputError
from parallel_dl.launch.environment import check_launcher
from parallel_dl.launch.job import Job

MOST_RANKS = 1024
_START_SECONDS = 60.0  # until the first rank must have connected
_EXIT_SECONDS = 3.0  # within which all ranks must end once one has refused, or called sys.exit(0)
_RECORD_SECONDS = 0.5  # after a rank's end, for its completion record to be read
_ATTENDANT_SECONDS = 1.0  # within which a lost rank's attendant tells how it ended
_DEADLY = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGTERM}
_FROM_MPIRUN = {-signal.SIGKILL, -signal.SIGTERM}  # how mpirun ends the others
_FINALIZE_SECONDS = 10.0  # for MPI to shut down after all ranks are done


def run(ranks: int, arguments: list[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs `(-m MODULE | SCRIPT) [ARGUMENT ...]` on N ranks of this machine; returns the exit status.

    0 when every rank completed; 2 when one completed with 2 (bad input; its line is printed once); otherwise 1 or the
    rank's own status, and a line that names the rank. Ends the others at once: nothing is left running. InputError
    when there is no mpirun, when srun has already started several of us that MPI does not connect, and for more ranks
    than a machine can be expected to hold.
    """
    if ranks > MOST_RANKS:
        raise InputError(
            f"{ranks} ranks: valid are at most {MOST_RANKS} on one machine; for more, use mpirun on several"
        )
    check_launcher(1)

    stopped: list[int] = []  # noted, and looked at while we wait: nothing interrupts the end of a job
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number, previous in before.items() if previous is not signal.SIG_IGN]  # nohup ignores one
    for number in caught:
        signal.signal(number, lambda number, _: stopped.append(number))
    try:
        with Job(ranks, arguments, environment, attended=True) as job:
            status = _watch(job, stopped)
        if stopped:
            print(f"parallel-dl: stopped by {_signal_name(stopped[0])}; ended all ranks", file=sys.stderr, flush=True)
        return status
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _watch(job: Job, stopped: list[int]) -> int:
    """Follows the ranks until all have completed, one has failed, or a signal has come."""
    ended: dict[int, str] = {}  # rank -> "done" or "exited"
    status, lines = 0, []
    start = time.monotonic()
    exit_deadline = refusal_deadline = None
    while len(ended) < job.ranks:
        if stopped:
            return 128 + stopped[0]
        for rank, kind, content in job.events(0.1):
            if kind == "done":
                ended[rank] = kind
                code, line = content
                status = status or code
                if code:  # the others may be waiting for it
                    refusal_deadline = refusal_deadline or time.monotonic() + _EXIT_SECONDS
                if line is not None and line not in lines:
                    lines.append(line)
                    print(line, file=sys.stderr, flush=True)
            elif kind == "exited":
                ended[rank] = kind
                exit_deadline = exit_deadline or time.monotonic() + _EXIT_SECONDS
            elif kind == "failed":
                what, text, code = content
                time.sleep(0.2)  # for what other ranks have printed and mpirun still passes on
                for line in text.splitlines():
                    print(f"rank {rank}: {line}", file=sys.stderr)
                return _say(f"rank {rank} {what}", code)
            elif kind == "lost" and rank not in ended:
                return _lost(job, rank, ended)
        for rank, (_, heard) in job.exits.items():  # a child of the rank may hold its connection open
            if rank not in ended and time.monotonic() - heard > _RECORD_SECONDS:
                return _lost(job, rank, ended)
        if refusal_deadline is not None and time.monotonic() > refusal_deadline:
            return status
        if exit_deadline is not None and time.monotonic() > exit_deadline and len(ended) < job.ranks:
            first = next(rank for rank, kind in ended.items() if kind == "exited")
            others = ", ".join(str(rank) for rank in range(job.ranks) if rank not in ended)
            return _say(f"rank {first} called sys.exit(0) while rank {others} went on", 1)
        if job.mpirun.poll() is not None and len(ended) < job.ranks and not any(job.events(0.2)):
            missing = [rank for rank in range(job.ranks) if rank not in ended]
            return _say(f"mpirun ended with status {job.mpirun.returncode} before rank {missing[0]} had completed", 1)
        if not job.pids and time.monotonic() - start > _START_SECONDS:
            return _say(f"mpirun started no rank within {_START_SECONDS:.0f} s", 1)
    deadline = time.monotonic() + _FINALIZE_SECONDS
    while job.mpirun.poll() is None and time.monotonic() < deadline and not stopped:
        list(job.events(0.01))
    if stopped:
        return 128 + stopped[0]
    if job.mpirun.poll() is None:
        print("parallel-dl: all ranks are done, but MPI did not shut down; ended it", file=sys.stderr)
    return status


def _lost(job: Job, rank: int, ended: Iterable[int]) -> int:
    """A rank has gone without a record: its attendant knows how, or else mpirun may."""
    deadline = time.monotonic() + _ATTENDANT_SECONDS
    while rank not in job.exits and time.monotonic() < deadline and job.mpirun.poll() is None:
        list(job.events(0.02))
    if rank not in job.exits or job.exits[rank][0] in _FROM_MPIRUN:  # perhaps mpirun's answer to another's end
        list(job.events(0.1))
        first = [r for r, (code, _) in job.exits.items() if r not in ended and code not in _FROM_MPIRUN]
        rank = first[0] if first else rank
    if rank in job.exits:
        code = job.exits[rank][0]
        known = f" with status {code}"
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.mpirun.wait(_ATTENDANT_SECONDS)
        code = job.mpirun.returncode or 0
        # Open MPI gives 128 + the signal, MPICH the signal itself
        number = code - 128 if code > 128 else code if job.is_hydra else 0
        known = f" with status {code}" if code else ""
        code = -number if number in _DEADLY else code
    if code < 0:
        return _say(f"rank {rank} was killed by {_signal_name(-code)}", 128 - code)
    if rank not in job.exits:
        return _say(f"mpirun ended{known} before rank {rank} had completed (MPI_Abort or a crash)", code or 1)
    return _say(f"rank {rank} ended{known} without completing (os._exit or a crash)", code or 1)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"signal {number}"


def _say(line: str, status: int) -> int:
    print(f"parallel-dl: {line}; ended the other ranks", file=sys.stderr, flush=True)
    return status if 0 < status < 256 else 1

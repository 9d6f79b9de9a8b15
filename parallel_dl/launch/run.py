"""Runs a program on N ranks and says, for a shell, how it ended."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType

from parallel_dl.launch.environment import check_launcher
from parallel_dl.launch.job import Job

_START_SECONDS = 60.0  # until the first rank must have connected
_EXIT_SECONDS = 3.0  # within which all ranks must end once one has called sys.exit(0)
_DEADLY = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGTERM, signal.SIGILL, signal.SIGFPE}
_FINALIZE_SECONDS = 10.0  # for MPI to shut down after all ranks are done


class _Stopped(Exception):
    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number


def run(ranks: int, arguments: list[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs `(-m MODULE | SCRIPT) [ARGUMENT ...]` on N ranks of this machine; returns the exit status.

    0 when every rank completed; 2 when one completed with 2 (bad input; its line is printed once); otherwise 1 or the
    rank's own status, and a line that names the rank. Ends the others at once: nothing is left running. InputError
    when there is no mpirun, or when srun has already started several of us that MPI does not connect.
    """

    check_launcher(1)

    def stop(signal_number: int, _: FrameType | None) -> None:
        raise _Stopped(signal_number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with Job(ranks, arguments, environment) as job:
            return _watch(job)
    except _Stopped as stopped:
        return 128 + stopped.signal_number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(job: Job) -> int:
    """Follows the ranks until all have completed or one has failed."""
    ended: dict[int, str] = {}  # rank -> "done" or "exited"
    status, lines = 0, []
    start = time.monotonic()
    exit_deadline = None
    while len(ended) < job.ranks:
        for rank, kind, content in job.events(0.1):
            if kind == "done":
                ended[rank] = kind
                code, line = content
                status = status or code
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
                return _lost(job, rank)
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
    while job.mpirun.poll() is None and time.monotonic() < deadline:
        list(job.events(0.01))
    if job.mpirun.poll() is None:
        print("parallel-dl: all ranks are done, but MPI did not shut down; ended it", file=sys.stderr)
    return status


def _lost(job: Job, rank: int) -> int:
    """A rank's connection ended without a record: mpirun may know how."""
    deadline = time.monotonic() + 1
    while job.mpirun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    code = job.mpirun.returncode or 0
    # Open MPI gives 128 + the signal, MPICH the signal itself
    number = -code if code < 0 else code - 128 if code > 128 else code if job.is_hydra else 0
    if number in _DEADLY:
        return _say(f"rank {rank} was killed by {signal.Signals(number).name}", 128 + number)
    known = f" with status {code}" if code else ""
    return _say(f"rank {rank} ended{known} without completing (os._exit, a kill or a crash)", code or 1)


def _say(line: str, status: int) -> int:
    print(f"parallel-dl: {line}; ended the other ranks", file=sys.stderr, flush=True)
    return status if 0 < status < 256 else 1

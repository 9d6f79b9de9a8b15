"""Runs a program on N ranks and says, for a shell, how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from parallel_dl.errors import InputError
from parallel_dl.launch import limits, watching
from parallel_dl.launch.ends import (
    End,
    ended_after_completion,
    ended_by_mpirun,
    failed,
    late,
    lost,
    not_started,
    positions_of,
    signal_name,
)
from parallel_dl.launch.environment import check_launcher, find_mpirun
from parallel_dl.launch.job import Job
from parallel_dl.launch.pages import pages_in
from parallel_dl.launch.streams import Outlet, Passage, lost_output, occupy_closed, say
from parallel_dl.watchdog.watchdog import HEARD, Watchdog

_START_SECONDS = 60.0  # within which the first rank must have connected, and then each further one
_EXIT_SECONDS = 3.0  # within which all ranks must end once one has refused, or called sys.exit(0) unwatched
_RECORD_SECONDS = 0.5  # after a rank's end, for its completion record to be read
_FINALIZE_SECONDS = 10.0  # for MPI to shut down after all ranks are done
_LEFT_OPEN_SECONDS = 0.5  # for a pipe to end after all its writers have ended


def run(
    ranks: int,
    arguments: list[str],
    environment: Mapping[str, str] | None = None,
    results: list[bytes] | None = None,
    timeout: float | None = None,
) -> int:
    """Runs `(-m MODULE | SCRIPT) [ARGUMENT ...]` on N ranks of this machine; returns the exit status.

    0 when every rank completed; 2 when one completed with 2 (bad input; its line is printed once); otherwise 1 or the
    rank's own status, and a line that names the rank. Ends the others at once: nothing is left running. What ranks
    print is passed on; where stdout does not take it, it goes to stderr, and the status is 2. With a list `results`,
    what a command of ours prints is added to it instead. InputError when there is no mpirun, when srun has already
    started several processes of ours that MPI does not connect, and for more ranks than the machine can hold.
    """
    find_mpirun()
    limits.require_room(ranks)
    check_launcher(1)
    occupy_closed()
    if (warning := limits.slow_start(ranks)) is not None:
        say(f"parallel-dl: {warning}")

    stopped: list[int] = []  # noted, and looked at while we wait: nothing interrupts the end of a job
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number, previous in before.items() if previous is not signal.SIG_IGN]  # nohup ignores one
    for number in caught:
        signal.signal(number, lambda number, _: stopped.append(number))
    try:
        return _Run(stopped, results, timeout).run(ranks, arguments, environment)
    finally:
        for number in caught:
            signal.signal(number, before[number])


class _Run:
    """One run: the job, what its ranks print, and the signals that have come."""

    def __init__(self, stopped: list[int], results: list[bytes] | None, timeout: float | None = None) -> None:
        self.stopped, self.results, self.timeout = stopped, results, timeout
        self.stdout, self.stderr = Outlet(1), Outlet(2)
        self.one_place = os.path.sameopenfile(1, 2)  # a terminal, or 2>&1

    def run(self, ranks: int, arguments: list[str], environment: Mapping[str, str] | None) -> int:
        if sys.stdout is not None:
            sys.stdout.flush()  # what was printed earlier comes first
        try:
            job = Job(ranks, arguments, environment, subprocess.PIPE, subprocess.PIPE, attended=True)
        except OSError as error:
            raise InputError(f"mpirun cannot be started: {error.strerror or error}") from error
        with job:
            passages = [Passage(job.mpirun.stdout, self.stdout), Passage(job.mpirun.stderr, self.stderr)]
            for passage in passages:
                passage.start()
            self.job, self.passages, self.errors = job, passages, passages[1]
            end = self._watch(job)
            positions = positions_of(job, self.watchdog) if self.stopped else []
        for passage in passages:
            passage.drain(_LEFT_OPEN_SECONDS, self.stopped)
        if self.stopped:
            self._tell(f"parallel-dl: stopped by {signal_name(self.stopped[0])}; ended all ranks")
            for line in positions:
                self._tell(line)
            return 128 + self.stopped[0]
        return self._say(end, "; ended the other ranks" if ranks > 1 else "")

    def _say(self, end: int | End, consequence: str) -> int:
        status = end if isinstance(end, int) else end.status
        if isinstance(end, End):
            self._tell(f"parallel-dl: {end.line}{consequence}")
            for line in end.text:
                self._tell(line)
        if isinstance(self.stdout.error, BrokenPipeError):
            return status or 1  # whoever read it has ended: they know
        if self.stdout.error is not None:
            self._tell(f"parallel-dl: {lost_output(self.stdout.error)}")
            return status or 2
        return status if 0 <= status < 256 else 1

    def _tell(self, line: str) -> None:
        self.stderr.end_line()
        if self.one_place:
            self.stdout.end_line()
        say(line)

    def _said(self) -> bytes:
        """The last of what mpirun and the ranks have written to stderr, and MPICH's pages, which go to stdout."""
        if self.job.mpirun.poll() is not None:
            for passage in self.passages:
                passage.join(_LEFT_OPEN_SECONDS)
        return self.errors.tail + pages_in(self.passages[0].tail)

    def _watch(self, job: Job) -> int | End:
        """Follows the ranks until all have completed, one has failed or none can go on, or a signal has come."""
        self.ended: dict[int, str] = {}  # rank -> "done" or "exited"
        self.status, self.lines = 0, list[str]()
        started = self.latest = time.monotonic()  # when the last rank connected
        self.exit_deadline: float | None = None
        self.refusal_deadline: float | None = None
        self.watchdog = Watchdog(job.send)
        while len(self.ended) < job.ranks:
            if self.stopped or isinstance(self.stdout.error, BrokenPipeError):
                return self.status
            for event in job.events(0.1):
                if (end := self._take(job, *event)) is not None:
                    return end
            if self.refusal_deadline is None and (deadlock := self.watchdog.look()) is not None:
                return End(deadlock.line, 1, deadlock.picture)
            while self.watchdog.notices:
                self._tell(f"parallel-dl: {self.watchdog.notices.pop(0)}")
            if self.timeout is not None and time.monotonic() - started > self.timeout:
                return End(f"took more than {self.timeout:g} s", 1, positions_of(job, self.watchdog))
            if (over := self._is_over(job)) is not None:
                return over
        return self._finalized(job, self.status, started)

    def _take(self, job: Job, rank: int, kind: str, content: tuple) -> End | None:
        """What a rank has said, which may be the end."""
        if kind == "hello":
            self.latest = time.monotonic()
        elif kind == "done":
            self.ended[rank] = kind
            code, line = content
            self.status = self.status or code
            if code:  # the others may be waiting for it
                self.refusal_deadline = self.refusal_deadline or time.monotonic() + _EXIT_SECONDS
            if line is not None and line not in self.lines:
                self.lines.append(line)
                self._tell(line)
        elif kind == "result" and self.results is not None:
            self.results.append(content[0])
        elif kind == "result":
            self.stdout.write_result(content[0])
        elif kind == "exited":
            self.ended[rank] = kind
            if not watching.sees_mpi(job.variables):  # else it is known whether others wait for it
                self.exit_deadline = self.exit_deadline or time.monotonic() + _EXIT_SECONDS
        elif kind == "failed":
            return failed(job, rank, *content)
        elif kind in HEARD:
            self.watchdog.hear(rank, kind, content)
        elif kind == "late":
            return late(job, rank, *content)
        elif kind == "lost" and rank not in self.ended:
            return lost(job, rank, self.ended, self._said)
        return None

    def _is_over(self, job: Job) -> int | End | None:
        """Whether the ranks that have not completed never will, by what is seen of processes, and by the clock."""
        now = time.monotonic()
        for rank, exit in job.exits.items():  # a child of the rank may hold its connection open
            if rank not in self.ended and now - exit.heard > _RECORD_SECONDS:
                return lost(job, rank, self.ended, self._said)
        if self.refusal_deadline is not None and now > self.refusal_deadline:
            return self.status
        missing = [rank for rank in range(job.ranks) if rank not in self.ended]
        if self.exit_deadline is not None and now > self.exit_deadline and missing:
            first = next(rank for rank, kind in self.ended.items() if kind == "exited")
            more = f"s {', '.join(map(str, missing[:-1]))} and" if len(missing) > 1 else ""
            return End(f"rank {first} called sys.exit(0) while rank{more} {missing[-1]} went on", 1)
        if job.mpirun.poll() is not None and missing and not any(job.events(0.2)):
            return ended_by_mpirun(job, missing[0], self._said)
        if len(job.pids) < job.ranks and (end := not_started(self.errors.tail)) is not None:
            return end
        if len(job.pids) < job.ranks and now - self.latest > _START_SECONDS:
            number = f"{len(job.pids)} of {job.ranks} ranks, and no other" if job.pids else "no rank"
            return End(f"mpirun started {number} within {_START_SECONDS:.0f} s", 1)
        return None

    def _finalized(self, job: Job, status: int, started: float) -> int | End:
        """Waits until MPI has shut down, after all ranks have completed."""
        if not status:
            for line in self.watchdog.leftovers():
                self._tell(f"parallel-dl: {line}")
        deadline = time.monotonic() + _FINALIZE_SECONDS
        while job.mpirun.poll() is None and time.monotonic() < deadline and not self.stopped:
            list(job.events(0.01))
            if self.timeout is not None and time.monotonic() - started > self.timeout and job.mpirun.poll() is None:
                return End(f"took more than {self.timeout:g} s: all ranks are done, but MPI did not shut down", 1)
        if job.mpirun.poll() is None and not self.stopped:
            self._tell("parallel-dl: all ranks are done, but MPI did not shut down; ended it")
        # MPICH's MPI_Abort returns, and the program may complete before mpirun ends its ranks
        if job.mpirun.returncode and not status and not self.stopped:
            return ended_after_completion(job, self._said)
        return status

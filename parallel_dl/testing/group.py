"""In the main process: one job of N ranks runs all tests for N ranks, and a new one takes over after a failure."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time

import pytest

import parallel_dl
from parallel_dl.errors import InputError
from parallel_dl.launch import Job
from parallel_dl.launch.tracebacks import CHECKED_VARIABLE as CHECKED
from parallel_dl.testing.marks import number_of_ranks
from parallel_dl.testing.reports import failure, ranks_named
from parallel_dl.testing.turn import Turn

_START_SECONDS = 180.0  # for mpirun to start all ranks, and again for them to collect the tests
_CLOSE_SECONDS = 20.0  # for fixtures of modules and of the session to be torn down, and MPI to be finalized


class _NoJob(Exception):
    """Why the ranks could not be brought to the point where they run tests."""


class Group:
    """The tests for `ranks` ranks. A job is started for the first, and for the one after any that failed."""

    def __init__(self, config: pytest.Config, ranks: int) -> None:
        self.config, self.ranks = config, ranks
        self.grace = float(config.getini("ranks_grace"))
        self.job: Job | None = None
        self._jobs = 0

    def run(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        """Runs one item on all ranks; the reports to emit."""
        try:
            return self._run(item, nextitem)
        except (_NoJob, InputError) as error:
            self.end(graceful=False)
            return failure(item, str(error))
        except BaseException:  # Ctrl-C: the ranks are in the middle of the test
            self.end(graceful=False)
            raise

    def _run(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        if self.job is None:
            self._start(item)
        if item.nodeid in self._missing:
            raise _NoJob(self._missing[item.nodeid])
        assert self.job is not None
        following = nextitem.nodeid if nextitem is not None and number_of_ranks(nextitem) == self.ranks else None
        turn = Turn(self.job, item, self.grace, self._left)
        self.job.send(("run", item.nodeid, following))
        turn.wait()
        reports = turn.reports() if turn.in_order else turn.broken(self._how_it_died)
        if not turn.in_order or any(report.failed for report in reports):
            self.end(graceful=turn.in_order)  # the ranks may be out of step
        return reports

    def _start(self, item: pytest.Item) -> None:
        items = [other for other in item.session.items if number_of_ranks(other) == self.ranks]
        captures = self.config.getoption("capture", "fd") != "no"
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the job runs)
        stdout = self.log if captures else None
        home = os.path.dirname(os.path.dirname(os.path.abspath(parallel_dl.__file__)))
        given = os.environ.get("PYTHONPATH")
        environment = {"PYTHONPATH": home if given is None else home + os.pathsep + given}
        environment[CHECKED] = os.environ.get(CHECKED, "1" if self.config.getini("ranks_checked") else "0")
        self.job = Job(self.ranks, ["-m", "parallel_dl.testing.session"], environment, stdout, stdout)
        self._missing: dict[str, str] = {}
        self._left: set[str] = set()  # what tests of this job have left behind, and was told
        self._each_rank("hello", "start")
        self._jobs += 1
        base = self.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        setup = {
            "ranks": self.ranks,
            "items": [other.nodeid for other in items],
            "files": list(dict.fromkeys(str(other.path) for other in items)),
            "arguments": [*map(str, self.config.invocation_params.args), f"--rootdir={self.config.rootpath}"],
            "options": {k: v for k, v in vars(self.config.option).items() if isinstance(v, (bool, int, float, str))},
            "folder": str(self.config.invocation_params.dir),
            "path": sys.path,
            "pythonpath": given,
            "basetemp": str(base / f"{self.ranks}-ranks-{self._jobs}"),
        }
        self.job.send(setup)
        for rank, (missing, errors) in self._each_rank("collected", "collect the tests").items():
            for nodeid in missing:
                self._missing.setdefault(nodeid, f"rank {rank} of {self.ranks} could not collect this test\n{errors}")

    def _each_rank(self, kind: str, what: str) -> dict[int, tuple]:
        """Waits until every rank has said this."""
        assert self.job is not None
        deadline = time.monotonic() + _START_SECONDS
        said: dict[int, tuple] = {}
        while len(said) < self.ranks:
            for event in self.job.events(0.1):
                if event.kind == kind:
                    said[event.rank] = event.content
                elif event.kind in ("lost", "closed", "failed", "exited"):
                    text = event.content[1] if event.kind == "failed" else ""
                    time.sleep(0.2)  # for what mpirun still has to say
                    raise _NoJob(
                        f"rank {event.rank} of {self.ranks} ended before it could {what}\n{text}{self._said()}"
                    )
            if self.job.mpirun.poll() is not None and not self.job.pids:
                raise _NoJob(f"mpirun ended with status {self.job.mpirun.returncode}\n{self._said()}")
            if time.monotonic() > deadline:
                waiting = [rank for rank in range(self.ranks) if rank not in said]
                stacks = "".join(f"--- rank {rank} ---\n{text}" for rank, text in self.job.stacks().items())
                raise _NoJob(f"{ranks_named(waiting)} did not {what} within {_START_SECONDS:.0f} s\n{stacks}")
        return said

    def _said(self) -> str:
        """What mpirun and the ranks have written outside of tests."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace").strip()

    def _how_it_died(self, rank: int) -> str:
        """Only mpirun has seen it: its words, or its own exit status."""
        assert self.job is not None
        deadline = time.monotonic() + 1
        while self.job.mpirun.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        found = re.search(r"\bsignal (\d+)\b", self._said())
        status = self.job.mpirun.returncode
        number = int(found[1]) if found else status - 128 if status is not None and status > 128 else None
        if number in set(signal.Signals):
            return f"rank {rank} was killed by {signal.Signals(number).name}"
        known = "" if status is None else f" (exit status {status})"
        return f"rank {rank} ended with os._exit or a crash, without completing{known}"

    def end(self, graceful: bool = True) -> None:
        """Ends the job; `graceful` lets the ranks tear down what they have set up."""
        job, self.job = self.job, None
        if job is None:
            return
        try:
            if graceful:
                job.send(("finish",))
                deadline, closed = time.monotonic() + _CLOSE_SECONDS, set[int]()
                while len(closed) < self.ranks and time.monotonic() < deadline:
                    closed |= {event.rank for event in job.events(0.1) if event.kind in ("done", "lost", "failed")}
                job.end(max(0.0, deadline - time.monotonic()))
        finally:
            job.end()
            self.log.close()

"""A job: mpirun in a session of its own, a connection to every rank, and an end that leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from parallel_dl.launch import tracebacks
from parallel_dl.launch.attendant import ATTENDED
from parallel_dl.launch.environment import find_mpirun, is_hydra, settings
from parallel_dl.launch.folder import Folder
from parallel_dl.launch.limits import require_temporary
from parallel_dl.launch.processes import session, started
from parallel_dl.launch.rank import JOB_VARIABLE

# becomes mpirun when told so, and ends when the launcher is killed before: after that its folder has a guard
_WAITING = 'read go && exec "$@" </dev/null'

_FLUSH_SECONDS = 1.0  # for Open MPI's mpirun to write what it still holds of the ranks' output

_RANK = str(Path(__file__).resolve().with_name("__main__.py"))


class Event(NamedTuple):
    """What a rank said: ("hello", pid), ("done", status, message), ...; or ("lost",) when its connection ended."""

    rank: int
    kind: str
    content: tuple


class Exit(NamedTuple):
    """How a rank's process has ended, as its attendant has said."""

    code: int  # -N for signal N
    told: bool  # by mpirun
    heard: float  # when


class Job:
    """`ranks` ranks, each running `launch/__main__.py ARGUMENTS`, from the start to `end()`.

    A context manager: leaving it ends the job. With `attended`, each rank has an attendant that tells how it ended.
    """

    def __init__(
        self,
        ranks: int,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
        stdout: Any = None,
        stderr: Any = None,
        attended: bool = False,
    ) -> None:
        mpirun = find_mpirun()
        self.is_hydra = is_hydra(mpirun)
        if not self.is_hydra:
            require_temporary(ranks)
        self.ranks = ranks
        self.pids: dict[int, int] = {}
        self.exits: dict[int, Exit] = {}
        self._born: dict[int, str] = {}  # pid -> when it started: a pid may be given to another process later
        self._links: dict[int, Connection] = {}
        self._strangers: list[Connection] = []  # connected, but their rank is not known yet
        self._folder = Folder(backlog=ranks)
        self.folder = self._folder.path
        self._listener = self._folder.listener
        self.variables = variables = {**os.environ, **(environment or {})}
        variables.update(settings(ranks, self.folder, variables))
        variables[JOB_VARIABLE] = self.folder
        # by its path, and with -P: a folder called parallel_dl where we are started is not taken for the package
        command = [str(mpirun), "-n", str(ranks), sys.executable, "-P", _RANK]
        command += [*([ATTENDED] if attended else []), *arguments]
        try:
            self.mpirun = subprocess.Popen(
                ["/bin/sh", "-c", _WAITING, "sh", *command],
                env=variables,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        except BaseException:
            self._folder.remove()
            raise
        self._folder.guard(self.mpirun.pid)
        assert self.mpirun.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.mpirun.stdin.write(b"go\n")
        self.mpirun.stdin.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # -- talking ---------------------------------------------------------------------------------------------------
    def events(self, timeout: float) -> Iterator[Event]:
        """What the ranks say within `timeout` seconds, at once as soon as there is something."""
        links = {link: rank for rank, link in self._links.items()}
        for ready in wait([self._listener, *self._strangers, *links], timeout):
            if ready is self._listener:
                accepted, _ = self._listener.accept()
                self._strangers.append(Connection(accepted.detach()))
                continue
            assert isinstance(ready, Connection)
            try:
                kind, *content = ready.recv()
            except (EOFError, OSError):
                ready.close()
                if ready in self._strangers:
                    self._strangers.remove(ready)
                else:
                    del self._links[links[ready]]
                    yield Event(links[ready], "lost", ())
                continue
            if kind == "hello":
                rank, pid, attendant = content
                self._strangers.remove(ready)
                self._links[rank], self.pids[rank] = ready, pid
                self._born.update((p, started(p)) for p in (pid, attendant) if p is not None)
                yield Event(rank, "hello", (pid,))
            elif kind == "ended":
                rank, code, told = content
                self._strangers.remove(ready)
                ready.close()
                self.exits[rank] = Exit(code, told, time.monotonic())
            else:
                yield Event(links[ready], kind, tuple(content))

    def send(self, message: Any) -> None:
        """Sends a command to every rank that lives."""
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.send(message)

    def stacks(self) -> dict[int, str]:
        """The Python stack of every living rank, also of one that waits inside MPI."""
        for pid in self._living(self.pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        deadline = time.monotonic() + 2
        files = {rank: Path(self.folder, f"stack.{rank}") for rank in self.pids}
        while time.monotonic() < deadline and not all(f.exists() and f.stat().st_size for f in files.values()):
            time.sleep(0.02)
        time.sleep(0.1)  # for the last lines
        return {rank: file.read_text() for rank, file in files.items() if file.exists()}

    def crash(self, rank: int) -> list[str]:
        """The Python lines of a crash (SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL) of a rank."""
        try:
            text = Path(self.folder, f"crash.{rank}").read_text()
        except OSError:
            return []
        return tracebacks.of_crash(text) if text else []

    # -- the end ---------------------------------------------------------------------------------------------------
    def _living(self, of: Iterable[int]) -> list[int]:
        return [pid for pid in of if started(pid) == self._born[pid] != ""]

    def _members(self) -> list[int]:
        """The living processes of the job, mpirun first."""
        return [*session(self.mpirun.pid), *self._living(self._born)]

    @staticmethod
    def _kill(pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def end(self, grace: float = 0.0) -> None:
        """Ends every process of the job by its id and removes what it left; waits `grace` s for a normal end first."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.mpirun.wait(grace)
        # mpirun first: it would have much to say about ranks that die
        if not self.is_hydra and self.mpirun.poll() is None:
            self.mpirun.terminate()  # Open MPI's holds back lines that are not finished, and writes them when it ends
            self._kill(pid for pid in self._members() if pid != self.mpirun.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.mpirun.wait(_FLUSH_SECONDS)
        self._kill(self._members())
        self.mpirun.wait()
        for link in [*self._links.values(), *self._strangers]:
            link.close()
        self._links, self._strangers = {}, []
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and self._living(self._born):
            time.sleep(0.01)
        self._folder.remove()

"""A job: mpirun in a session of its own, a connection to every rank, and an end that leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from parallel_dl.launch.environment import (
    MPI_FILES,
    SHARED_MEMORY,
    find_mpirun,
    is_hydra,
    mapped_shared_memory,
    settings,
)
from parallel_dl.launch.rank import ATTENDED, JOB_VARIABLE


class Event(NamedTuple):
    """What a rank said: ("hello", pid), ("done", status, message), ...; or ("lost",) when its connection ended."""

    rank: int
    kind: str
    content: tuple


class Job:
    """`ranks` ranks, each running `python -m parallel_dl.launch ARGUMENTS`, from the start to `end()`.

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
        self.ranks = ranks
        self.pids: dict[int, int] = {}
        self.exits: dict[int, tuple[int, float]] = {}  # rank -> its exit code, -N for signal N; when we heard of it
        self._born: dict[int, str] = {}  # pid -> when it started: a pid may be given to another process later
        self._links: dict[int, Connection] = {}
        self._strangers: list[Connection] = []  # connected, but their rank is not known yet
        self._shared_before = set(_list(SHARED_MEMORY))
        self.folder = tempfile.mkdtemp(prefix="pdl-")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.path.join(self.folder, "socket"))
        self._listener.listen(ranks)
        variables = {**os.environ, **(environment or {})}
        variables.update(settings(ranks, self.folder, variables))
        variables[JOB_VARIABLE] = self.folder
        command = [str(mpirun), "-n", str(ranks), sys.executable, "-m", "parallel_dl.launch"]
        command += [*([ATTENDED] if attended else []), *arguments]
        try:
            self.mpirun = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )
        except BaseException:
            self._listener.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

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
                self._born.update((p, _started(p)) for p in (pid, attendant) if p is not None)
                yield Event(rank, "hello", (pid,))
            elif kind == "ended":
                rank, code = content
                self._strangers.remove(ready)
                ready.close()
                self.exits[rank] = code, time.monotonic()
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

    # -- the end ---------------------------------------------------------------------------------------------------
    def _living(self, of: Iterable[int]) -> list[int]:
        return [pid for pid in of if _started(pid) == self._born[pid] != ""]

    def end(self, grace: float = 0.0) -> None:
        """Ends every process of the job by its id and removes what it left; waits `grace` s for a normal end first."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.mpirun.wait(grace)
        # mpirun first: it would have much to say about ranks that die
        for pid in [*_session(self.mpirun.pid), *self._living(self._born)]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self.mpirun.wait()
        for link in [*self._links.values(), *self._strangers]:
            link.close()
        self._links, self._strangers = {}, []
        self._listener.close()
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and self._living(self._born):
            time.sleep(0.01)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._clear_shared_memory()

    def _clear_shared_memory(self) -> None:
        """Removes what MPI left in /dev/shm: ours, new since we started, and in no living process."""
        left = [n for n in _list(SHARED_MEMORY) if n not in self._shared_before and n.startswith(MPI_FILES)]
        if not left:
            return
        used = set().union(*(mapped_shared_memory(pid) for pid in _list("/proc") if pid.isdigit()))
        for name in left:
            path = os.path.join(SHARED_MEMORY, name)
            with contextlib.suppress(OSError):
                if os.stat(path).st_uid == os.geteuid() and path not in used:
                    os.unlink(path)


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, group, session, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return text[text.rindex(")") + 2 :].split()
    except (OSError, ValueError):
        return []


def _started(pid: int) -> str:
    """When a process started, in the system's own words; empty when it does not live (any more)."""
    if os.path.isdir("/proc/self"):
        fields = _stat(pid)
        return fields[19] if fields and fields[0] != "Z" else ""
    run = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def _session(leader: int) -> list[int]:
    """The processes of the session that this process began, itself first."""
    if os.path.isdir("/proc/self"):
        pids = [int(name) for name in _list("/proc") if name.isdigit()]
        members = [pid for pid in pids if (fields := _stat(pid)) and fields[3] == str(leader) and fields[0] != "Z"]
    else:
        run = subprocess.run(["ps", "-axo", "pid=,sess="], capture_output=True, text=True, check=False)
        rows = [line.split() for line in run.stdout.splitlines()]
        members = [int(pid) for pid, session in rows if session == str(leader)]
    return sorted(members, key=lambda pid: pid != leader)

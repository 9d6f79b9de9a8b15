"""The side of a rank: connects to the launcher, runs the program and reports how it ended.

The connection stays open. Its end, seen from the launcher, is the death of the rank; seen from the rank, it is the
death of the launcher, and the rank ends itself. How a rank has died its attendant knows, if it has one: the
process that mpirun started, which forks the rank and waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import queue
import runpy
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from parallel_dl.launch.environment import MPI_FILES, mapped_shared_memory, mpirun_rank

JOB_VARIABLE = "PARALLEL_DL_JOB"
ATTENDED = "--attended"

_connection: Connection | None = None
_sending = threading.Lock()
_commands: queue.SimpleQueue = queue.SimpleQueue()
_completed = False
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_ENDED_BY_LAUNCHER_SECONDS = 5.0


def connected() -> bool:
    """Whether our launcher started this process."""
    return _connection is not None


def send(message: tuple) -> None:
    """Sends a message to the launcher."""
    assert _connection is not None
    with _sending, contextlib.suppress(OSError):
        _connection.send(message)


def receive() -> Any:
    """Waits for the next command of the launcher."""
    return _commands.get()


def complete(status: int = 0, message: str | None = None) -> None:
    """The completion record: this rank has done all it had to do, and how it should be told (2: bad input)."""
    global _completed
    if connected() and not _completed:
        _completed = True
        sys.stdout.flush()
        sys.stderr.flush()
        send(("done", status, message))


def connect(attendant: int | None = None) -> None:
    """Connects to the launcher that the environment names, and watches it from a thread.

    `attendant` is the process id of this rank's, if it has one.
    """
    global _connection
    folder = os.environ[JOB_VARIABLE]
    link = socket.socket(socket.AF_UNIX)
    link.connect(os.path.join(folder, "socket"))
    _connection = Connection(link.detach())
    # a stack is written even while the rank waits inside MPI
    stack = open(os.path.join(folder, f"stack.{mpirun_rank()}"), "w")  # noqa: SIM115  (open as long as we live)
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
    send(("hello", mpirun_rank(), os.getpid(), attendant))
    threading.Thread(target=_watch, args=(folder,), name="launcher watch", daemon=True).start()


def _watch(folder: str) -> None:
    assert _connection is not None
    try:
        while True:
            _commands.put(_connection.recv())
    except (EOFError, OSError):  # the launcher has died
        shutil.rmtree(folder, ignore_errors=True)
        for path in mapped_shared_memory("self"):
            if os.path.basename(path).startswith(MPI_FILES):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        os._exit(1)


def _attend() -> None:
    """Forks: the child returns and goes on as the rank; this process waits, and tells the launcher how the rank ended.

    mpirun's own word is not enough: MPICH gives the end of any rank, often of one that it has killed itself.
    """
    attendant = os.getpid()
    pid = os.fork()
    if pid == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != attendant:
            os._exit(1)
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # mpirun ends the others so, but has SIGKILL for us
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):  # the launcher may have gone
        link = socket.socket(socket.AF_UNIX)
        link.connect(os.path.join(os.environ[JOB_VARIABLE], "socket"))
        with Connection(link.detach()) as connection:
            connection.send(("ended", mpirun_rank(), code))
        if code:  # the launcher ends the job at once; mpirun would have much to say about us
            time.sleep(_ENDED_BY_LAUNCHER_SECONDS)
    os._exit(code if code >= 0 else 128 - code)


def main() -> None:
    """Runs the program given on the command line as Python would, and reports."""
    arguments = sys.argv[1:]
    attended = arguments[:1] == [ATTENDED]
    if attended:
        arguments = arguments[1:]
        _attend()
    connect(os.getppid() if attended else None)
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        if not _completed and ended.code in (None, 0):
            sys.stdout.flush()
            send(("exited",))
        elif not _completed:
            text = "" if isinstance(ended.code, int) else f"{ended.code}\n"
            _fail(f"called sys.exit({ended.code!r})", text, ended.code if isinstance(ended.code, int) else 1)
        return
    except BaseException as error:
        head = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        _fail(f"raised {head}", "".join(traceback.format_exception(error)), 1)
    complete()


def _fail(what: str, text: str, status: int) -> None:
    """Reports a failure and waits to be ended: the other ranks may be waiting for us."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    send(("failed", what, text, status))
    time.sleep(_ENDED_BY_LAUNCHER_SECONDS)
    os._exit(1)

"""The side of a rank: connects to the launcher, runs the program and reports how it ended.

The connection stays open. If it ends, the launcher knows that the rank has died, and the rank that the launcher has
died: then the rank ends itself. How a rank died is known to its attendant, if it has one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import queue
import runpy
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from parallel_dl import interrupts
from parallel_dl.launch import tracebacks
from parallel_dl.launch.attendant import ATTENDED, ENDED_BY_LAUNCHER_SECONDS, attend
from parallel_dl.launch.environment import MPI_FILES, mapped_shared_memory, mpirun_rank
from parallel_dl.launch.folder import connection_to
from parallel_dl.launch.pages import not_started

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from parallel_dl.launch.watching import Watching

JOB_VARIABLE = "PARALLEL_DL_JOB"

INTERRUPTED = "was interrupted (SIGINT)"
_STATE = "state"  # watchdog.STATE, which a command that starts no ranks does not import
_INTERRUPT_SECONDS = 0.5  # in which Python hears of a SIGINT, unless it waits inside MPI

_connection: Connection | None = None
_watching: Watching | None = None
_sending = threading.Lock()
_commands: queue.SimpleQueue = queue.SimpleQueue()
_completed = False
_interrupted = threading.Event()


def connected() -> bool:
    """Whether our launcher started this process."""
    return _connection is not None


def send(message: tuple) -> None:
    """Sends a message to the launcher; ("result", bytes) is for its stdout."""
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
        _flush()
        tell_end()
        send(("done", status, message))


def tell_end() -> None:
    """Tells the launcher's watchdog that this rank makes no more calls."""
    if _watching is not None:
        _watching.end()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


class Result(io.BytesIO):
    """The bytes under a text stream whose lines, at every flush, go to the launcher's stdout."""

    def flush(self) -> None:
        if data := self.getvalue():
            send(("result", data))
            self.seek(0)
            self.truncate()


def connect(attendant: int | None = None) -> None:
    """Connects to the launcher that the environment names, and watches it from a thread.

    `attendant` is the process id of this rank's, if it has one. If it cannot connect it ends the process, and says
    why through mpirun, for the launcher to repeat; if the launcher has gone, nobody hears it.
    """
    global _connection, _watching
    folder = os.environ[JOB_VARIABLE]
    try:
        _connection = connection_to(folder)
    except OSError as error:
        _give_up(f"{folder}, where its launcher listens, cannot be reached: {error.strerror or error}")
    # a stack is written even while the rank waits inside MPI
    faulthandler.register(signal.SIGUSR1, file=_open(folder, "stack"), all_threads=True)
    faulthandler.enable(_open(folder, "crash"))
    send(("hello", mpirun_rank(), os.getpid(), attendant))
    from parallel_dl.launch import watching  # a command that starts no ranks goes without it

    if watching.is_on():
        _watching = watching.Watching(mpirun_rank(), send)
        _watching.start()
        watching.watch_mpi(_watching.end)
    threading.Thread(target=_watch, name="launcher watch", daemon=True).start()


def _give_up(why: str) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, not_started(mpirun_rank(), why))
    os._exit(1)


def _open(folder: str, name: str) -> Any:
    """This rank's file in the job's folder, open as long as we live; what it cannot hold is lost."""
    try:
        return open(os.path.join(folder, f"{name}.{mpirun_rank()}"), "w")
    except OSError:
        return open(os.devnull, "w")


def _watch() -> None:
    assert _connection is not None
    try:
        while True:
            command = _connection.recv()
            if isinstance(command, tuple) and command[0] == _STATE:
                if _watching is not None:
                    _watching.answer(command[1])
            else:
                _commands.put(command)
    except (EOFError, OSError):  # the launcher has died; its folder has a guard
        for path in mapped_shared_memory("self"):
            if os.path.basename(path).startswith(MPI_FILES):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        os._exit(1)


def _report_interrupts() -> None:
    """Reports a SIGINT to this rank at once, also while it waits inside MPI, where Python does not hear of it.

    A program's own handler still gets it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return

    def interrupt(*_: object) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    def listen() -> None:
        while number := os.read(reading, 1):
            if signal.SIGINT not in number or signal.getsignal(signal.SIGINT) is not interrupt:
                continue
            if not _interrupted.wait(_INTERRUPT_SECONDS):
                send(("failed", INTERRUPTED, "", 128 + signal.SIGINT))
            _interrupted.clear()

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGINT, interrupt)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=listen, name="interrupt watch", daemon=True).start()


def _read_nothing() -> None:
    """The launcher passes no input on: a rank that asks for some gets the end of it, where it would wait for ever."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if nothing:
        os.close(nothing)


def _find_modules_of(arguments: list[str]) -> None:
    """Puts first on `sys.path` what Python puts there for such a program; nothing for a module of ours."""
    if os.environ.get("PYTHONSAFEPATH"):
        return
    if arguments[0] != "-m":
        sys.path.insert(0, os.path.dirname(os.path.realpath(arguments[0])))
    elif arguments[1].partition(".")[0] != "parallel_dl":
        sys.path.insert(0, os.getcwd())


def main() -> None:
    """Runs the program given on the command line as Python would, and reports."""
    arguments = sys.argv[1:]
    attended = arguments[:1] == [ATTENDED]
    if attended:
        arguments = arguments[1:]
        try:
            attend(os.environ[JOB_VARIABLE])
        except OSError as error:
            _give_up(f"no process can be started: {error.strerror or error}")
    connect(os.getppid() if attended else None)
    if attended:
        _read_nothing()
    interrupts.raise_again()
    if attended:
        _report_interrupts()
    _find_modules_of(arguments)
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        if not _completed and ended.code in (None, 0):
            _flush()
            tell_end()
            send(("exited",))
        elif not _completed:
            text = "" if isinstance(ended.code, int) else f"{ended.code}\n"
            _fail(f"called sys.exit({ended.code!r})", text, ended.code if isinstance(ended.code, int) else 1)
        return
    except KeyboardInterrupt:
        _fail(INTERRUPTED, "", 128 + signal.SIGINT)
    except BaseException as error:
        _fail(tracebacks.summary_of(error), tracebacks.text_of(error), 1)
    complete()


def _fail(what: str, text: str, status: int) -> None:
    """Reports a failure and waits to be ended: the other ranks may be waiting for us."""
    _flush()
    send(("failed", what, text, status))
    time.sleep(ENDED_BY_LAUNCHER_SECONDS)
    os._exit(1)

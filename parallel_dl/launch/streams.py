"""Standard streams that may be closed, full or without a reader: output goes where it can, and losses are reported.

`Printed` stands for sys.stdout or sys.stderr while a command runs in this process; `Outlet` is the launcher's, for what
the ranks print.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import threading
from typing import Any

from parallel_dl.launch.pages import Filter


def occupy_closed() -> None:
    """Opens /dev/null where stdin, stdout or stderr is closed: else the next file opened would get its number.

    For reading, so that it remains an error to write there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDONLY)
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)


def say(line: str) -> None:
    """One line on stderr, if it can be written."""
    if sys.stderr is not None:
        try:
            print(line, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            _discard(sys.stderr)


def lost_output(error: OSError) -> str:
    """The line that says why stdout has taken no more."""
    why = "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)
    return f"stdout: {why}; the output it did not take is above, on stderr"


def _discard(stream: Any) -> None:
    """Sends what a stream still holds, and what it gets later, to /dev/null: writing it at exit would fail, too."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


class Printed(io.TextIOBase):
    """A stream that passes on what is printed, until that fails: then all of it, from the first line, goes to `other`.

    `error` is then set. Without `other` what cannot be written is dropped. If the reader of a pipe has gone, nothing
    goes elsewhere: one BrokenPipeError ends the command.
    """

    def __init__(self, stream: Any, other: Any = None) -> None:
        self.stream, self.other = stream, other
        self.error: OSError | None = None
        self._kept: list[str] = []
        if isinstance(stream, io.TextIOWrapper):  # a character it cannot encode is no reason to lose the rest
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # typer tries bytes, to find out what a stream takes
            raise TypeError(f"write() takes str, not {type(text).__name__}")
        if self.error is not None:
            self._elsewhere(text)
        else:
            if self.other is not None:
                self._kept.append(text)
            self._try("write", text)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            self._try("flush")

    def _try(self, method: str, *arguments: str) -> None:
        try:
            if self.stream is not None:
                getattr(self.stream, method)(*arguments)
            elif method == "write":
                raise OSError(errno.EBADF, "closed")
        except OSError as error:
            self.error = error
            _discard(self.stream)
            if self.other is not None and isinstance(error, BrokenPipeError):
                raise
            self._elsewhere("".join(self._kept))

    def _elsewhere(self, text: str) -> None:
        if self.other is not None and not isinstance(self.error, BrokenPipeError):
            self.other.write(text)
            self.other.flush()

    # -- what those who print want to know about it ----------------------------------------------------------------
    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self.stream, "errors", None)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("fileno: the stream is closed")
        return self.stream.fileno()


class Outlet:
    """The launcher's stdout (1) or stderr (2), for bytes; written to from several threads.

    What stdout does not take goes to stderr, and `error` is set; what stderr does not take is dropped.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.error: OSError | None = None
        self._lock = threading.Lock()
        self._results = b""
        self._in_line = False

    def write(self, data: bytes) -> None:
        """Writes all of it."""
        with self._lock:
            self._elsewhere(self._written(memoryview(data)))
            if data:
                self._in_line = not data.endswith(b"\n")

    def end_line(self) -> None:
        """Begins a new line, unless the last one is complete: what is said next stands by itself."""
        if self._in_line:
            self.write(b"\n")

    def write_result(self, data: bytes) -> None:
        """Writes all of it; if that fails, all results go to stderr, from the first byte of the first one."""
        with self._lock:
            failed_before = self.error is not None
            self._results += data
            if len(self._written(memoryview(data))):
                self._elsewhere(data if failed_before else self._results)

    def _written(self, rest: Any) -> Any:
        """Writes what it can, and returns the rest."""
        while len(rest) and self.error is None:
            try:
                rest = rest[_write(self.number, rest) :]
            except OSError as error:
                self.error = error
        return rest

    def _elsewhere(self, rest: Any) -> None:
        if self.number == 1 and not isinstance(self.error, BrokenPipeError):
            with contextlib.suppress(OSError):
                while len(rest):
                    rest = rest[_write(2, rest) :]


def _write(number: int, data: Any) -> int:
    while True:
        try:
            return os.write(number, data)
        except BlockingIOError:  # another process has made it non-blocking
            select.select([], [number], [])


class Passage(threading.Thread):
    """Passes on what comes out of mpirun's pipe to an outlet, less its pages about ranks, until all have closed it."""

    def __init__(self, pipe: Any, outlet: Outlet) -> None:
        super().__init__(name="passage", daemon=True)
        self.pipe, self.outlet = pipe, outlet
        self.tail = b""  # the last of it, with the pages
        self._writing = False
        self._pages = Filter()

    def run(self) -> None:
        while data := os.read(self.pipe.fileno(), 1 << 16):
            self.tail = (self.tail + data)[-(1 << 16) :]
            self._writing = True
            self.outlet.write(self._pages.passed(data))
            self._writing = False
        self.outlet.write(self._pages.rest())

    def drain(self, patience: float, stopped: list[int]) -> None:
        """Waits until all has been passed on: `patience` s for more to come, and as long as the outlet's reader takes.

        A signal in `stopped` ends it. A process that a rank has left behind may hold the pipe open.
        """
        waited = 0.0
        while self.is_alive() and not stopped and (self._writing or waited < patience):
            self.join(0.05)
            waited = 0.0 if self._writing else waited + 0.05

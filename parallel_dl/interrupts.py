"""SIGINT (Ctrl-C) while modules are imported and while the interpreter ends: it ends the process without a traceback.

Only Python's own handler is replaced: where SIGINT is ignored (nohup), or a program has a handler of its own, that
stays as it is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STATUS = 128 + signal.SIGINT

_line = ""


def _end(*_: object) -> None:
    with suppress(OSError):
        os.write(2, _line.encode())
    os._exit(STATUS)


def end_at_once(line: str = "") -> None:
    """From now on SIGINT ends this process with status 130, and with that line on stderr if there is one."""
    global _line
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end):
        _line = f"{line}\n" if line else ""
        signal.signal(signal.SIGINT, _end)


@contextmanager
def raised() -> Iterator[None]:
    """Inside, SIGINT raises KeyboardInterrupt; afterwards, if it did before, it ends the process, without a line."""
    ours = signal.getsignal(signal.SIGINT) is _end
    raise_again()
    try:
        yield
    finally:
        if ours:
            end_at_once()


def raise_again() -> None:
    """Undoes `end_at_once`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Makes one rank's failure end the job; otherwise the other ranks would wait forever for a rank that is gone.

This is for a user's own `mpirun -n N python script.py`; under our launcher, which watches the ranks, and under pytest
nothing is installed. From the import of `parallel_dl.mpi` on an uncaught exception ends all ranks with status 1; from
the first communicator of several ranks on (`world()`) an uncaught `sys.exit(status)` ends them with that status: only
then is `sys.exit` replaced. Not covered: `raise SystemExit` without `sys.exit`, `os._exit`, and signals, which are
MPI's to notice (`mpirun -n N python -m mpi4py script.py` covers the first).
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, NoReturn

from parallel_dl.mpi.startup import MPI

_PASSING_SECONDS = 0.2  # for mpirun to pass on what was printed: after an abort MPICH's may drop it

# of the process, as the hooks of the interpreter are
_installed_in: int | None = None  # a process id: forked children end as they like
_excepthook = sys.excepthook


def watch_exceptions() -> None:
    """Makes uncaught exceptions end all ranks, if there are several and nobody else watches them."""
    global _installed_in, _excepthook
    watched = "PARALLEL_DL_JOB" in os.environ or "pytest" in sys.modules
    if MPI.COMM_WORLD.size == 1 or watched or _installed_in is not None:
        return
    _installed_in = os.getpid()
    _excepthook = sys.excepthook
    sys.excepthook = report_and_abort


def watch_exits() -> None:
    """Makes an uncaught `sys.exit` end all ranks, too, where exceptions do."""
    if _installed_in == os.getpid():
        sys.exit = builtins.exit = builtins.quit = exit_or_abort  # type: ignore[assignment]


def leave() -> None:
    """Lets this rank end with a status of its own without ending the others: all of its work is done."""
    global _installed_in
    _installed_in = None


def finish() -> None:
    """Ends MPI on all ranks together, so that each can exit with its own status without being aborted."""
    leave()
    _flush()
    if not MPI.Is_finalized():
        MPI.COMM_WORLD.Barrier()
        MPI.Finalize()


class _AbortingExit(SystemExit):
    """A SystemExit that ends all ranks if nobody catches it.

    Only the interpreter reads `code` with no Python function below the read: when it is about to end. Whoever catches
    the exception reads it from a Python function, and gets what a SystemExit would give.
    """

    @property
    def code(self) -> Any:  # type: ignore[override]
        code = self.args[0] if len(self.args) == 1 else self.args or None
        try:
            sys._getframe(1)
        except ValueError:
            _ended_by_exit(code)
        return code


def exit_or_abort(status: Any = None, /) -> NoReturn:
    """In place of `sys.exit`."""
    # threading knows the exact type only; there it ends the thread
    if threading.current_thread() is not threading.main_thread():
        raise SystemExit(status)
    raise _AbortingExit(status)


def report_and_abort(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """In place of `sys.excepthook`: the traceback headed by the rank, then the end of all ranks."""
    if _is_installed_here():
        print(f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size} raised:", file=sys.stderr)
    _excepthook(kind, error, traceback)
    if _is_installed_here():
        abort(1)


def _is_installed_here() -> bool:
    return _installed_in == os.getpid() and not MPI.Is_finalized()


def _ended_by_exit(code: Any) -> None:
    if code is None or code == 0 or not _is_installed_here():
        return
    if not isinstance(code, int):  # Python prints what is no number, and ends with 1
        print(code, file=sys.stderr)
    status = code & 0xFF if isinstance(code, int) else 1
    print(f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size} ended with status {status}", file=sys.stderr)
    abort(status or 1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):  # closed, full, or none at all
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def abort(status: int) -> NoReturn:
    """Ends all ranks of MPI.COMM_WORLD."""
    _flush()
    time.sleep(_PASSING_SECONDS)
    MPI.COMM_WORLD.Abort(status)
    os._exit(status)  # MPICH's MPI_Abort returns: the end comes a little later, from mpirun

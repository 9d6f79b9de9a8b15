"""A rank's attendant: the process started by mpirun, which forks the rank, waits for it and reports how it ended.

mpirun's own status is not enough: MPICH reports the end of any rank, often of one that it killed itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import Any

from parallel_dl.launch.environment import mpirun_rank
from parallel_dl.launch.folder import connection_to

ATTENDED = "--attended"

ENDED_BY_LAUNCHER_SECONDS = 5.0  # within which the launcher ends a rank that has failed
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_TOLD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # how mpirun ends its processes, before SIGKILL
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)  # by mpirun to its processes and what they have forked: for the rank


def attend(folder: str) -> None:
    """Forks: the child returns and continues as the rank; this process waits, reports and ends as the rank did.

    It also reports whether mpirun has told it to end: then the rank's end was mpirun's doing.
    """
    attendant = os.getpid()
    pid = os.fork()
    if pid == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != attendant:
            os._exit(1)
        return
    told: list[int] = []
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    for number in _TOLD:
        signal.signal(number, lambda number, _: told.append(number))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):  # the launcher may have gone
        with connection_to(folder) as connection:
            connection.send(("ended", mpirun_rank(), code, bool(told)))
        if code:  # the launcher ends the job at once; mpirun would print a long report about us
            _sleep(ENDED_BY_LAUNCHER_SECONDS, told)
    os._exit(code if code >= 0 else 128 - code)


def _sleep(seconds: float, told: list[Any]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not told:
        time.sleep(0.1)

"""Hangs are named: what each rank waits for, and whether that can still come.

No MPI is called here, and the package knows none but the module it is given. To read in this order:

    record.py         what a rank's calls write down
    wrapping.py       the calls of mpi4py's communicators, which write it
    requests.py       its requests, which do, too
    communicators.py  puts both into mpi4py
    buffers.py        arrays that are used while MPI has them
    importing.py      wraps them as soon as they are imported
    state.py          what a rank tells of itself
    deadlock.py       which ranks can never go on
    picture.py        what they do, side by side
    mismatch.py       collectives of plain mpi4py compared before they are made
    watchdog.py       the launcher's side, which asks and decides
"""

from __future__ import annotations

from parallel_dl.watchdog.communicators import group_of, is_watched, uncompared, unwatched, wrap
from parallel_dl.watchdog.importing import when_imported
from parallel_dl.watchdog.record import (
    COLLECTIVE,
    RECEIVE,
    Group,
    begin,
    know_ours,
    last_call,
    over,
    this_rank,
    where,
)
from parallel_dl.watchdog.state import State, Watch
from parallel_dl.watchdog.watchdog import Deadlock, Watchdog

__all__ = [
    "COLLECTIVE",
    "RECEIVE",
    "Deadlock",
    "Group",
    "State",
    "Watch",
    "Watchdog",
    "begin",
    "group_of",
    "is_watched",
    "know_ours",
    "last_call",
    "over",
    "this_rank",
    "uncompared",
    "unwatched",
    "when_imported",
    "where",
    "wrap",
]

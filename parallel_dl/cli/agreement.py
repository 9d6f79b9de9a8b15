"""An error on one rank is an error on all: they agree on it before any of them continues."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from parallel_dl.cli.limits import flag_of
from parallel_dl.errors import InputError
from parallel_dl.launch import rank

if TYPE_CHECKING:
    from parallel_dl.mpi import Communicator

T = TypeVar("T")


def agreed(comm: Communicator, prepare: Callable[[], T]) -> T:
    """Calls prepare() on every rank; if any raises InputError, all end in order with the first such rank's line."""
    error, result = None, None
    try:
        result = prepare()
    except InputError as caught:
        error = caught
    errors = [one for one in comm.all_gather_object(error) if one is not None]
    if errors:
        if comm.size > 1 and not rank.connected():  # a user's own mpirun: one of us speaks, then all end together
            from parallel_dl.mpi import finish

            if comm.rank == 0:
                print(f"parallel-dl: {errors[0].spoken(flag_of)}", file=sys.stderr, flush=True)
            finish()
            raise SystemExit(2)
        raise errors[0]
    assert result is not None
    return result

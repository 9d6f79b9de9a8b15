"""How much memory there is: what cannot fit is refused before any is taken."""

from __future__ import annotations

import functools
import os
import resource
from pathlib import Path

from parallel_dl.errors import InputError

# what a container may take: control groups, version 2 and 1
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@functools.cache
def bytes_of_memory() -> int:
    """Bytes of memory: the least of what the machine has, and what its container and `ulimit -v` allow."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    for place in _LIMITS:
        try:
            found.append(int(place.read_text()))
        except (OSError, ValueError):  # not there, or without a limit
            continue
    return min(found)


def require_memory(what: str, needed: int) -> None:
    """Raises InputError, which begins with `what`, if more than half of the memory is needed."""
    most = bytes_of_memory() // 2
    if needed > most:
        raise InputError(f"{what}: would take {_short(needed)} of memory; the limit here is {_short(most)}")


def _short(size: int) -> str:
    """Like 3.2 GB; an integer of any size."""
    number, prefix = size, ""
    for prefix in ("k", "M", "G", "T", "P", "E"):
        number, rest = divmod(number, 1000)
        if number < 1000:
            return f"{number}.{rest // 100} {prefix}B"
    return "more than 1000 EB"

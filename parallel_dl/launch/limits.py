"""What ranks need of this machine; if it lacks something, one line says so before any rank is started."""

from __future__ import annotations

import os
import resource

from parallel_dl.errors import InputError
from parallel_dl.launch.environment import SHARED_MEMORY, cores, is_hydra, little_shared_memory, shared_memory_free
from parallel_dl.launch.folder import place

MOST_RANKS = 1024
_MOST_RANKS_PER_CORE = 64  # each takes about half a second of a core to start
_SLOW_RANKS_PER_CORE = 8
_FILES, _FILES_PER_RANK = 32, 8  # that mpirun opens
_ADDRESSES = 500 << 20  # bytes: the address space of a rank, of which most is never used
_FILE = 16 << 20  # bytes
# what Open MPI's mpirun and ranks write to the folder for temporary files: with less room mpirun dies of SIGBUS
_TEMPORARY, _TEMPORARY_PER_RANK = 128 << 10, 8 << 10  # bytes
_TEMPORARY_FILES, _TEMPORARY_FILES_PER_RANK = 16, 4
_TEMPORARY_SHARED = 32 << 20  # bytes, where shared memory is there, too: of its 16 MiB per rank little is written
_HYDRA_SHARED_MEMORY = 64 << 10  # bytes per rank; with less than 48 KiB ranks die of SIGBUS


def _require_open_files(ranks: int = 0) -> None:
    """Raises this process's limit of open files if it is too low; InputError if it may not: MPI would crash."""
    needed = _FILES + _FILES_PER_RANK * ranks
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        what = f"{ranks} ranks need" if ranks > 1 else "MPI needs"
        raise InputError(f"ulimit -n {hard}: {what} at least {needed} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def require_room(ranks: int) -> None:
    """Refuses (InputError) more ranks than this machine can hold."""
    if ranks > MOST_RANKS:
        raise InputError(
            f"{ranks} ranks: at most {MOST_RANKS} are allowed on one machine; for more, use mpirun on several"
        )
    if ranks > _MOST_RANKS_PER_CORE * cores():
        raise InputError(
            f"{ranks} ranks on {cores()} cores: at most {_MOST_RANKS_PER_CORE} are allowed per core, "
            f"{_MOST_RANKS_PER_CORE * cores()} here"
        )
    _require_open_files(ranks)  # mpirun's
    require_mpi(ranks)


def require_mpi(ranks: int) -> None:
    """Refuses (InputError) limits with which MPI would crash or print pages of its own messages."""
    hydra = is_hydra()
    _require_open_files()
    _require_address_space()
    if hydra or ranks > 1:
        _require_file_size()
    if hydra:
        _require_shared_memory(ranks)


def _require_address_space() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < _ADDRESSES:
        raise InputError(f"ulimit -v {soft >> 10}: a rank needs at least {_ADDRESSES >> 10} KiB of address space")


def _require_file_size() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft != resource.RLIM_INFINITY and soft < _FILE:
        raise InputError(f"ulimit -f: {soft >> 10} KiB; MPI shares memory in files, which need {_FILE >> 10} KiB")


def _require_shared_memory(ranks: int) -> None:
    if not os.path.isdir(SHARED_MEMORY):  # another system, which keeps it elsewhere
        return
    needed = ranks * _HYDRA_SHARED_MEMORY
    if not os.access(SHARED_MEMORY, os.W_OK):
        raise InputError(f"{SHARED_MEMORY} cannot be written to: MPICH needs it; Open MPI does not")
    if shared_memory_free() < needed:
        what = f"{ranks} ranks" if ranks > 1 else "one rank"
        free = shared_memory_free() >> 10
        raise InputError(
            f"{SHARED_MEMORY} has {free} KiB free, but MPICH needs {needed >> 10} KiB for {what}; "
            "make it larger (docker run --shm-size=1g), or use Open MPI"
        )


def require_temporary(ranks: int) -> None:
    """Refuses (InputError) a folder for temporary files with too little room for Open MPI."""
    folder = place()
    try:
        status = os.statvfs(folder)
    except OSError:  # the launcher's own folder cannot be made there: that is said then
        return
    needed = _TEMPORARY + ranks * _TEMPORARY_PER_RANK
    if little_shared_memory():
        needed += _TEMPORARY_SHARED
    what = f"{ranks} ranks" if ranks > 1 else "one rank"
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise InputError(
            f"TMPDIR: {folder} has {free >> 10} KiB free, but Open MPI needs {needed >> 10} KiB there for {what}"
        )
    files = _TEMPORARY_FILES + ranks * _TEMPORARY_FILES_PER_RANK
    if status.f_files > 0 and status.f_favail < files:  # some file systems do not count them
        raise InputError(
            f"TMPDIR: {folder} takes {status.f_favail} more files, but Open MPI needs {files} there for {what}"
        )


def slow_start(ranks: int) -> str | None:
    """A warning, if there are so many ranks that starting them takes a while."""
    if ranks < _SLOW_RANKS_PER_CORE * cores():
        return None
    return f"{ranks} ranks on {cores()} cores: they take a while to start, and fewer would be faster"

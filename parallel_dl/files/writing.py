"""Replaces a file atomically: a reader finds the old file or the whole new one.

The new file is written in the same folder under a hidden name, locked, and then renamed. A writer that is killed leaves
the hidden file, but the system drops its lock; that tells the next writer in this folder to remove it.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from parallel_dl.errors import InputError, named
from parallel_dl.files.reading import one_line

_PARTIAL = re.compile(r"\.parallel_dl-[0-9a-f]{16}\.partial")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write into, which becomes `path` at the end; after an exception `path` is what it was before.

    The new file takes over the permissions of the old one (and its owner, where that is allowed); without an old one,
    the umask decides. A link stays a link, and the file it points to is replaced. Raises InputError for whatever the
    system refuses: no such folder, no permission, a full disk, a quota, a limit on file sizes.
    """
    place = _place(path)
    try:
        before = place.stat() if place.exists() else None
        remove_abandoned(place.parent)
        partial, file = _create(place.parent, 0o666 if before is None else 0o600)
        try:
            with file:
                if before is not None:
                    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                        with suppress(PermissionError):
                            os.fchown(file.fileno(), before.st_uid, before.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{named(path)}: cannot be written ({one_line(error)})") from error


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raises InputError, before any work is done, when a file cannot be written there."""
    place = _place(path)
    try:
        remove_abandoned(place.parent)
        partial, file = _create(place.parent, 0o600)
        with file:  # locked for as long: no other writer takes it for abandoned
            partial.unlink()
    except OSError as error:
        raise InputError(f"{named(path)}: cannot write in {named(place.parent)}: {one_line(error)}") from None


def _place(path: str | os.PathLike[str]) -> Path:
    """The path with links followed: of a file, or of one yet to be made, in a folder that exists."""
    if not os.fspath(path):
        raise InputError(f"{named(path)}: is empty; give the name of a file")
    try:
        place = Path(path).resolve()
        if place.is_dir():
            raise InputError(f"{named(path)}: is a folder; give the name of a file in it")
        if place.exists() and not place.is_file():
            raise InputError(f"{named(path)}: is not a regular file; give the name of a file")
        if not place.parent.is_dir():
            raise InputError(f"{named(path)}: there is no folder {named(place.parent)}")
        return place
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a zero byte
        raise InputError(f"{named(path)}: is not a path that can be written ({one_line(error)})") from None


def _create(folder: Path, mode: int) -> tuple[Path, BinaryIO]:
    """A new hidden file, locked for as long as it is open."""
    while True:
        path = folder / f".parallel_dl-{os.urandom(8).hex()}.partial"
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb")
        with suppress(OSError):  # a file system without locks: what is abandoned there stays
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return path, file
        file.close()  # another writer took it for abandoned before it was locked


def remove_abandoned(folder: Path) -> None:
    """Removes hidden files of ours in the folder whose writers are dead."""
    with suppress(OSError):
        for name in filter(_PARTIAL.fullmatch, os.listdir(folder)):
            with suppress(OSError):
                _remove_if_abandoned(folder / name)


def _remove_if_abandoned(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError while its writer lives
            path.unlink()
    finally:
        os.close(descriptor)

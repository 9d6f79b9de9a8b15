"""Fetch files into a folder: downloaded to a partial file, checked by SHA-256, and only then put into place.

At every moment a file is there and right, or not there. A lock on each partial file keeps two downloads apart; the
system drops it when the process that holds it ends, however it ends.
"""

import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from parallel_dl.datasets.download import DownloadError, download
from parallel_dl.errors import InputError, shown
from parallel_dl.files import one_line

SECONDS = 30.0  # without a byte, after which a server is given up


def fetch(
    files: Mapping[str, tuple[int, str]],
    address: str,
    folder: str | os.PathLike[str],
    *,
    report: Callable[[str, int], None] = lambda name, have: None,
    waiting: Callable[[str], None] = lambda name: None,
    seconds: float = SECONDS,
) -> list[str]:
    """Bring the files (name -> bytes, SHA-256) from `address`/name into the folder; returns the names of the new ones.

    What is there and right is left alone; what is there and wrong is replaced. report(name, bytes) is called whenever
    there is more of a file, waiting(name) when another process is fetching the same file to the same place.

    Raises InputError, one line: DownloadError for no connection, another file than expected or a wrong checksum (then
    the partial file is removed); else a folder that cannot be written. What came before a connection broke is kept.
    """
    if not re.match("https?://[^/]", address):
        raise InputError(f"`from` {shown(address)}: valid begins with http:// or https:// and the server's name")
    folder, new = Path(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (size, sha256) in files.items():
            url = f"{address.rstrip('/')}/{name}"
            if not _is_right(folder / name, size, sha256):
                with _locked(folder / f"{name}.part", partial(waiting, name)) as file:
                    if not _is_right(folder / name, size, sha256):  # no other has put it there meanwhile
                        download(url, file, size, partial(report, name), seconds)
                        _put_into_place(file, folder / name, sha256, url)
                        new.append(name)
            report(name, size)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        where = os.fsdecode(getattr(error, "filename", None) or folder)
        raise InputError(f"{where}: cannot be written ({one_line(error)}); expected a writable folder") from error
    return new


def _is_right(path: Path, size: int, sha256: str) -> bool:
    try:  # without waiting for the writer of a named pipe
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
            return os.fstat(file.fileno()).st_size == size and _sha256(file) == sha256
    except FileNotFoundError:
        return False


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[BinaryIO]:
    """`path` open for reading and appending, in this process only; an empty one is removed in the end."""
    while True:
        with open(path, "ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file):  # another process has put this very file into place, or removed it
                continue
            try:
                yield file
            finally:
                if os.fstat(file.fileno()).st_size == 0:
                    path.unlink()
            return


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _put_into_place(file: BinaryIO, path: Path, sha256: str, url: str) -> None:
    """Rename the complete partial file to `path`, or remove it when it is not what it should be."""
    found = _sha256(file)
    if found != sha256:
        os.unlink(file.name)
        raise DownloadError(f"{url}: wrong checksum, SHA-256 {found}, expected {sha256}; removed what was downloaded")
    os.fsync(file.fileno())
    os.replace(file.name, path)

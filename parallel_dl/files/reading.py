"""Reads files and lists folders; every failure is one line that names the file or folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from parallel_dl.errors import InputError, named
from parallel_dl.files.memory import bytes_of_memory

MOST_TEXT = 1 << 20  # bytes of a text that a person writes: settings, a program


def one_line(said: BaseException | str) -> str:
    """What an error says, or names that a file holds, without line breaks; an error's type when it says nothing."""
    text = getattr(said, "strerror", None) or str(said)
    return " ".join(text.split()) or type(said).__name__


def listed(folder: str | os.PathLike[str], expected: str) -> list[str]:
    """The names in a folder, sorted; InputError when it cannot be listed, `expected` as below."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{named(folder)}: cannot be listed ({one_line(error)}); expected {expected}") from error


def require_regular(path: str | os.PathLike[str], expected: str, most: int | None = None) -> None:
    """Raises InputError unless there is a regular file of at most `most` bytes; see `opened`."""
    with opened(path, expected, most):
        pass


@contextmanager
def opened(path: str | os.PathLike[str], expected: str, most: int | None = None) -> Iterator[BinaryIO]:
    """`path` open for binary reading; `expected` ("an IDX file") says in errors what it should have been.

    Raises InputError when it is missing, may not be read, is not a regular file, has more than `most` bytes (None: a
    quarter of the memory), or fails while it is being read. The kind of file is looked at before it is opened, because
    opening a device can have effects; it is opened without waiting, because a named pipe would wait for a writer.
    """
    try:
        _require_readable(_status(path), path, expected, most)
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            _require_readable(os.fstat(file.fileno()), path, expected, most)  # it may be another one by now
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{named(path)}: no such file; expected {expected}") from None
    except OSError as error:
        raise InputError(f"{named(path)}: cannot be read ({one_line(error)}); expected {expected}") from error
    except MemoryError:
        raise InputError(f"{named(path)}: does not fit into memory; expected {expected}") from None


def _status(path: str | os.PathLike[str]) -> os.stat_result:
    try:
        return os.stat(path)
    except ValueError as error:  # a zero byte in the path
        raise OSError(str(error)) from None


def _require_readable(
    status: os.stat_result, path: str | os.PathLike[str], expected: str, most: int | None = None
) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{named(path)}: is a folder; expected {expected}")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{named(path)}: is not a regular file; expected {expected}")
    most = bytes_of_memory() // 4 if most is None else most
    if status.st_size > most:
        raise InputError(f"{named(path)}: has {status.st_size:,} bytes; expected {expected}, of at most {most:,}")


def read_text(path: str | os.PathLike[str], expected: str, most: int = MOST_TEXT) -> str:
    """The text in a UTF-8 file (with or without a byte order mark) of at most `most` bytes; InputError as `opened`."""
    with opened(path, expected, most) as file:
        content = file.read(most + 1)  # also of a file that grows, or does not say its size
    if len(content) > most:
        raise InputError(f"{named(path)}: has more than {most:,} bytes; expected {expected}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named(path)}: is not UTF-8 text (byte {error.start}); expected {expected}") from None

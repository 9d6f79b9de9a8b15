"""Read a file or list a folder such that every failure is one line that names it."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from parallel_dl.errors import InputError


def one_line(said: BaseException | str) -> str:
    """What an error says, or names that a file holds, without line breaks; an error's type when it says nothing."""
    text = getattr(said, "strerror", None) or str(said)
    return " ".join(text.split()) or type(said).__name__


def listed(folder: str | os.PathLike[str], expected: str) -> list[str]:
    """The names in a folder, sorted; InputError when it cannot be listed, `expected` as below."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be listed ({one_line(error)}); valid is {expected}") from error


def _mode(path: str | os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_mode
    except ValueError as error:  # a zero byte in the path
        raise OSError(str(error)) from None


@contextmanager
def opened(path: str | os.PathLike[str], expected: str) -> Iterator[BinaryIO]:
    """`path` open for binary reading; `expected` ("an IDX file") says in errors what it should have been.

    Raises InputError when it is missing, may not be read, is no regular file, or fails while it is being read. The
    kind of file is looked at before it is opened, because opening a named pipe waits for a writer.
    """
    try:
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a directory; valid is {expected}")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: is not a regular file; valid is {expected}")
        with open(path, "rb") as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; valid is {expected}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); valid is {expected}") from error

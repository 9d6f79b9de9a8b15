"""What a number of a flag can be, and which flag a message is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from parallel_dl.errors import InputError, cut

MOST = 2**31 - 1  # samples, updates, ...: what is beyond is a slip of the finger


def require_count(flag: str, number: int | None, least: int = 1, most: int = MOST) -> None:
    """Refuses a number that is given and not in least..most, by the name of its flag."""
    if number is not None and number < least:
        raise InputError(f"--{flag} {cut(str(number))}: must be at least {least}")
    if number is not None and number > most:
        raise InputError(f"--{flag} {cut(str(number))}: must be in {least}..{most}")


@contextmanager
def of_flag(flag: str) -> Iterator[None]:
    """What is refused inside begins with the flag."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{flag} {error}") from None

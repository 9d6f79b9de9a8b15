"""The numbers that flags accept, and the flag's name at the beginning of a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from parallel_dl.errors import InputError, cut

MOST = 2**31 - 1  # samples, updates, ...: anything larger is a typo


def require_count(field: str, number: int | None, least: int = 1, most: int = MOST) -> None:
    """Raises InputError, which names the flag of the field, if a number is given and not in least..most."""
    if number is not None and number < least:
        raise InputError(f"must be at least {least}", field, cut(str(number)))
    if number is not None and number > most:
        raise InputError(f"must be at most {most}", field, cut(str(number)))


def flag_of(field: str) -> str:
    """The flag that gives this field of the library."""
    return f"--{ {'stages': 'stage'}.get(field, field).replace('_', '-') }"


def require_seed(seed: int) -> None:
    """Raises InputError for a seed that the streams of random numbers do not take."""
    if not 0 <= seed < 2**63:
        raise InputError("must be in 0..2**63-1", "seed", cut(str(seed)))


@contextmanager
def of_ranks(flags: str, ranks: int) -> Iterator[None]:
    """Makes the message about too many ranks begin with the flags that ask for them."""
    try:
        yield
    except InputError as error:
        line, number = str(error), f"{ranks} ranks"
        if not line.startswith(number):
            raise
        said = line.removeprefix(number).lstrip(": ") if flags.split()[1:] == [str(ranks)] else line
        raise InputError(f"{flags}: {said}") from None


@contextmanager
def of_flag(flag: str) -> Iterator[None]:
    """Makes the message of an InputError that is raised inside begin with the flag."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{flag} {error.marked}") from None

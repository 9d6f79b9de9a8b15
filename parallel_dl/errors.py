"""What a user got wrong, said in one line: what it is, which value was given, what would be valid."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The command line prints its one line on stderr and ends with exit status 2, without a traceback."""


def unknown_name(what: str, name: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is none of `valid`, with the nearest valid one."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {what} {name!r}: {hint}valid are {', '.join(valid)}")

"""Bad input, reported in one line: what is wrong, which value was given, what would be valid.

The library names fields: "schedule 'gpip'", "microbatches 5". The command line names them as they were given, as flags
or as keys of a file: `InputError.spoken`.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

MOST_OF_VALUE = 80  # characters of one value that a line repeats
MOST_OF_LINE = 1000
_MOST_NAMES = 50  # valid names up to which all are listed

# a value that a line repeats: in quotes, or without blanks in it
_VALUE = re.compile(rf"""(?<![^\s(\[{{=,:])(['"])(?:(?!\1).){{{MOST_OF_VALUE},}}\1(?!\w)|\S{{{MOST_OF_VALUE + 1},}}""")
_FIELD = re.compile(r"`(\w+)`")
_BEGINS_WITH_FIELD = re.compile(r"(?:unknown )?`(\w+)`")


class InputError(ValueError):
    """Bad input. The command line prints its one line on stderr and ends with exit status 2, without a traceback.

    With a `field` the line is "field value: said", without one it is `said` alone. A field named inside the line is in
    backquotes there: InputError("must be 1 with `hybrid` owt", "mp", 2) is "mp 2: must be 1 with hybrid owt", which the
    command line prints as "--mp 2: must be 1 with --hybrid owt".
    """

    def __init__(self, said: str, field: str | None = None, value: Any = None) -> None:
        self.marked = said if field is None else f"`{field}`{'' if value is None else f' {value}'}: {said}"
        super().__init__(self.spoken(str))

    @property
    def field(self) -> str | None:
        """The field that the line begins with, if any."""
        found = _BEGINS_WITH_FIELD.match(self.marked)
        return None if found is None else found[1]

    def spoken(self, name: Callable[[str], str]) -> str:
        """The line, with each field called as `name` calls it."""
        return bounded(_FIELD.sub(lambda field: name(field[1]), self.marked))

    def __reduce__(self) -> Any:
        return type(self), (self.marked,)


def unknown_name(what: str, name: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is none of `valid`, with the nearest valid one; `what` may be a field, as "`loss`"."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name[:MOST_OF_LINE], valid, n=1, cutoff=0.4)
    hint = f"did you mean {shown(near[0])}? " if near else ""
    return InputError(f"unknown {what} {shown(name)}: {hint}{one_of(valid)}")


def one_of(valid: Iterable[Any]) -> str:
    """What would be valid: "expected a", or "expected one of a, b"."""
    names = [str(one) for one in valid]
    if not names:
        return "none is valid"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"expected {'one of ' if len(names) > 1 else ''}{', '.join(names[:_MOST_NAMES])}{more}"


def up_to(most: int) -> str:
    """What would be valid of a count: "expected 1", or "expected 1 to 8"."""
    return f"expected {1 if most == 1 else f'1 to {most}'}"


def number_of(number: int, word: str) -> str:
    """A number of things: "1 rank", "2 ranks", "1,000 microbatches", "0 axes"."""
    if number == 1:
        return f"1 {word}"
    stem, end = (word[:-2], "es") if word.endswith("is") else (word, "es" if word.endswith(("ch", "s", "x")) else "s")
    return f"{number:,} {stem}{end}"


def shown(value: Any) -> str:
    """How a line repeats a value: its repr; at most 80 characters of it."""
    if isinstance(value, (str, bytes)):
        return cut(repr(cut(value) if isinstance(value, str) else value[:MOST_OF_VALUE]))
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):  # an integer of more digits than Python writes; a list in a list in a list ...
        return cut(hex(value)) if isinstance(value, int) else f"a {type(value).__name__}"


def named(path: str | os.PathLike[str]) -> str:
    """How a line repeats a path: as far as it exists, and at most 80 characters of the rest; an empty one as ''."""
    return _cut_value(os.fsdecode(path)) or "''"


def cut(text: str, most: int = MOST_OF_VALUE) -> str:
    """The text, or its beginning and its end, `most` characters in all."""
    if len(text) <= most:
        return text
    head = (most - 3) // 2
    return f"{text[:head]}...{text[len(text) - (most - 3 - head) :]}"


def bounded(text: str) -> str:
    """A message as one line that a terminal can show: values in it cut to 80 characters, the whole to 1000."""
    line = " ".join(text[: 100 * MOST_OF_LINE].split())
    line = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)
    return cut(_VALUE.sub(lambda value: _cut_value(value[0]), line), MOST_OF_LINE)


def _cut_value(value: str) -> str:
    """The value cut to 80 characters. Of a path, only the part that does not exist is cut."""
    start = value.find(os.sep)
    if len(value) > MOST_OF_VALUE and 0 <= start <= MOST_OF_VALUE and len(value) <= MOST_OF_LINE:
        place = value[start:]
        while place != os.sep and not os.path.lexists(place):
            place = os.path.dirname(place)
        if place != os.sep:
            end = start + len(place)
            return value[:end] + cut(value[end:])
    return cut(value)

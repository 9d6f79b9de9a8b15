"""Settings in a file: a table in TOML or JSON with integers of 64 bits and limited nesting."""

from __future__ import annotations

import datetime
import json
import os
import tomllib
from typing import Any

from parallel_dl.errors import InputError, cut, named, shown
from parallel_dl.files.reading import one_line, read_text

DEEPEST = 32  # tables and lists inside each other


def read_table(path: str | os.PathLike[str], expected: str) -> dict[str, Any]:
    """The keys and values in a TOML file, or in a JSON one (.json).

    InputError, which names the file, if `files.opened` refuses it, or if it has another format, is not a table, or
    holds integers beyond 64 bits or lists and tables more than 32 deep.
    """
    text = read_text(path, expected)
    kind = "JSON" if os.fspath(path).endswith(".json") else "TOML"
    try:
        table = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except RecursionError:
        raise InputError(
            f"{named(path)}: is nested too deeply; expected {expected}, at most {DEEPEST} levels deep"
        ) from None
    except ValueError as error:  # bad syntax; or an integer of more digits than Python reads
        raise InputError(f"{named(path)}: is not {kind}: {one_line(error)}") from None
    if not isinstance(table, dict):
        raise InputError(f"{named(path)}: holds {as_written(table)}; expected {expected}")
    _require_plain(path, table)
    return table


def as_written(value: Any) -> str:
    """How a line repeats a value of a file: as the file has it, true and not True; at most 80 characters."""
    if isinstance(value, bool | list | dict | None):
        try:
            return cut(json.dumps(value, ensure_ascii=False, default=str))
        except (RecursionError, ValueError):
            return shown(value)
    return str(value) if isinstance(value, datetime.date | datetime.time) else shown(value)


def _require_plain(path: str | os.PathLike[str], table: dict[str, Any]) -> None:
    """Level by level, without recursion."""
    level: list[Any] = [table]
    for _ in range(DEEPEST):
        inside: list[Any] = []
        for one in level:
            inside += one.items() if isinstance(one, dict) else ((None, item) for item in one)
        for name, value in inside:
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                where = "" if name is None else f"{shown(name)} = "
                raise InputError(f"{named(path)}: {where}{shown(value)}: expected 64-bit integers")
        level = [value for _, value in inside if isinstance(value, (dict, list))]
        if not level:
            return
    raise InputError(f"{named(path)}: is nested too deeply; at most {DEEPEST} levels are allowed")

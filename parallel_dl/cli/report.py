"""How results are shown: tables that fit the screen, progress bars, and numbers that JSON can represent."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from parallel_dl.cli.terminal import console

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Column, Table

_LEAST_OF_WORDS = 12  # characters of a column of words
_NO_LIMIT = 1000


def finite(thing: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(thing, dict):
        return {key: finite(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return [finite(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing


def new_table(
    title: str | None,
    headers: Iterable[str],
    left: Sequence[str] = (),
    words: Sequence[str] = (),
    footers: Iterable[str] | None = None,
) -> Table:
    """An empty table; columns are numbers, on the right, but for those in `left`. Only `words` may be folded."""
    from rich import box
    from rich.table import Table

    headers = list(headers)
    table = Table(title=title, box=box.SIMPLE, title_justify="left", show_footer=footers is not None)
    for header, footer in zip(headers, [""] * len(headers) if footers is None else footers):
        table.add_column(header, footer, justify="left" if header in left else "right", no_wrap=header not in words)
    return table


def show(table: Table, notes: Iterable[str] = ()) -> None:
    """Prints the table, and lines of text below it. No number is cut off.

    On a terminal that is too narrow words are folded, and what does not fit yet goes on below, with the first column
    again. If there is no terminal, and COLUMNS does not give a width, each row is one line.
    """
    screen = console()
    parts, widths = [table], [_width(table)]
    if widths[0] > screen.width and (screen.is_terminal or "COLUMNS" in os.environ):
        _fold(table)
        parts = _split(table, screen.width)
        widths = [_least_width(part.columns) for part in parts]
    for part, width in zip(parts, widths):
        screen.width = max(screen.width, width)
        screen.print(part)
    if lines := list(notes):
        screen.print(*lines, sep="\n", soft_wrap=True)


def _width(table: Table) -> int:
    screen = console()
    return table.__rich_measure__(screen, screen.options.update(max_width=_NO_LIMIT)).maximum


def _fold(table: Table) -> None:
    """Less padding, headers in several lines, and columns of words as narrow as they have to be."""
    table.padding = (0, 1, 0, 0)
    for column in table.columns:
        if column.no_wrap:
            column.header = str(column.header).replace(" ", "\n")
            cells = (str(cell) for cell in (column.header, column.footer, *column.cells))
            column.min_width = max(len(line) for cell in cells for line in cell.split("\n"))
        else:
            column.overflow = "fold"


def _least_width(columns: Iterable[Column]) -> int:
    return sum((column.min_width or _LEAST_OF_WORDS) + 2 for column in columns) + 2


def _split(table: Table, width: int) -> list[Table]:
    """The table in as many as it takes, each with the first column."""
    first, *others = table.columns
    groups = [[first]]
    for column in others:
        if len(groups[-1]) > 1 and _least_width([*groups[-1], column]) > width:
            groups.append([first])
        groups[-1].append(column)
    parts = []
    for number, group in enumerate(groups):
        part = copy.copy(table)
        part.title = table.title if number == 0 else None
        part.columns = [dataclasses.replace(column, _index=at) for at, column in enumerate(group)]
        parts.append(part)
    return parts


@contextmanager
def progress(rank: int, columns: Callable[[Any], Sequence[Any]], transient: bool = True) -> Iterator[Progress | None]:
    """A progress bar on a terminal's stderr, of rank 0; None where there is no terminal.

    `columns` is given the module rich.progress, which is imported only here.
    """
    screen = console(stderr=True) if rank == 0 else None
    if screen is None or not screen.is_terminal:
        yield None
        return
    import rich.progress

    with rich.progress.Progress(*columns(rich.progress), console=screen, transient=transient) as bar:
        yield bar

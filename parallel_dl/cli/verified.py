"""Cells that `parallel-dl verify` has found, in a file: a job that ends in one of them loses none, and another goes on.

Ranks that end with an exception end their job, as others may wait for them. So each cell is written when it is found,
and the one that failed by the ranks on which it did; the next job begins after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parallel_dl.errors import InputError


class Verified:
    """The cells of the jobs of `ranks` ranks, in a folder that they share; without a folder, of this job alone."""

    def __init__(self, folder: str | None, ranks: int) -> None:
        self._cells: list[dict[str, Any]] = []
        self._file = None if folder is None else Path(folder) / f"cells-of-{ranks}.json"

    @property
    def cells(self) -> list[dict[str, Any]]:
        """In the order in which they were added."""
        if self._file is None or not self._file.exists():
            return self._cells
        return [json.loads(line) for line in self._file.read_text().splitlines()]

    def add(self, cell: dict[str, Any]) -> None:
        """One more."""
        if self._file is None:
            self._cells.append(cell)
        else:
            with self._file.open("a") as file:
                file.write(json.dumps(cell) + "\n")

    @contextmanager
    def failing_on(self, rank: int) -> Iterator[None]:
        """Inside, an exception that has a `cell` is noted for the next job; then it ends this one.

        An InputError, such as that of a rule of the user's own, ends it as one line that names the network and layout.
        """
        from parallel_dl.cli.verify_report import layout_text
        from parallel_dl.equivalence.verify import CellFailed

        try:
            yield
        except CellFailed as error:
            if self._file is not None:
                self._noted(rank).write_text(json.dumps(error.as_cell()))
            if not isinstance(error.__cause__, InputError):
                raise
            where = f"{error.cell.network}, {layout_text(error.cell.layout)}"
            raise InputError(f"{where}: {error.__cause__.marked}") from error

    def go_on(self) -> bool:
        """After a job that failed: whether a cell has failed in it, which is added now, so that the rest can go on."""
        failed = sorted(self._file.parent.glob(self._noted("*").name)) if self._file is not None else []
        if failed:
            self.add(json.loads(failed[0].read_text()))
        for file in failed:
            file.unlink()
        return bool(failed)

    def _noted(self, rank: int | str) -> Path:
        assert self._file is not None
        return self._file.with_suffix(f".failed-{rank}")

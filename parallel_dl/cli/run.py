"""`parallel-dl run`: any Python program on N ranks, watched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parallel_dl import launch
from parallel_dl.errors import InputError


def run(
    program: Annotated[str, typer.Argument(help="A Python file.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="What it gets as its arguments.")] = None,
    ranks: Annotated[int, typer.Option("-n", "--ranks", help="How many ranks.")] = 2,
) -> int:
    """Run a Python file on N ranks: a rank that fails ends them all, is named, and leaves nothing behind."""
    if ranks < 1:
        raise InputError(f"--ranks {ranks}: must be at least 1")
    if not Path(program).is_file():
        raise InputError(f"program {program!r}: there is no such file")
    if launch.inside_mpirun():
        raise InputError("run: starts the ranks itself; call it outside mpirun, or mpirun python PROGRAM without it")
    return launch.run(ranks, [program, *(arguments or [])])

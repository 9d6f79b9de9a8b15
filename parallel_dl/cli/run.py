"""`parallel-dl run`: any Python program on N ranks, watched."""

from __future__ import annotations

from typing import Annotated

import typer

from parallel_dl import launch
from parallel_dl.cli.limits import of_flag, require_count
from parallel_dl.errors import InputError
from parallel_dl.files import MOST_TEXT, require_regular
from parallel_dl.launch.limits import MOST_RANKS
from parallel_dl.launch.tracebacks import FULL_VARIABLE as FULL_TRACEBACK


def run(
    program: Annotated[str, typer.Argument(help="A Python file.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="What it gets as its arguments.")] = None,
    ranks: Annotated[int, typer.Option("-n", "--ranks", help="How many ranks.")] = 2,
    full_traceback: Annotated[
        bool, typer.Option("--full-traceback", help="Tracebacks with the frames that started the program.")
    ] = False,
) -> int:
    """Run a Python file on N ranks: a rank that fails ends them all, is named, and leaves nothing behind."""
    require_count("ranks", ranks, most=MOST_RANKS)
    with of_flag("program"):
        require_regular(program, "a Python file", MOST_TEXT)
    if launch.inside_mpirun():
        raise InputError("run: starts the ranks itself; call it outside mpirun, or mpirun python PROGRAM without it")
    environment = {FULL_TRACEBACK: "1"} if full_traceback else None
    return launch.run(ranks, [program, *(arguments or [])], environment)

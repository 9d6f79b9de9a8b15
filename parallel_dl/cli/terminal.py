"""Consoles for people: plain text unless a terminal is really there."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from parallel_dl import launch

if TYPE_CHECKING:
    from rich.console import Console

# mpirun gives ranks a pipe or a pseudo-terminal, whatever is behind it: our launcher says what it is
_VARIABLE = "PARALLEL_DL_COLUMNS"


def for_ranks() -> dict[str, str]:
    """What the ranks are told: how wide the terminal is, 0 for an output that is none."""
    columns = shutil.get_terminal_size().columns
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    terminals = {name for name, stream in streams.items() if stream is not None and stream.isatty()}
    return {f"{_VARIABLE}_{name}": str(columns if name in terminals else 0) for name in streams}


def console(stderr: bool = False) -> Console:
    """A console on stdout or stderr; `.is_terminal` says whether a person sees it as it is written."""
    from rich.console import Console

    if not launch.inside_mpirun():
        return Console(stderr=stderr, highlight=False)
    columns = int(os.environ.get(f"{_VARIABLE}_{'stderr' if stderr else 'stdout'}", "0"))
    return Console(stderr=stderr, highlight=False, force_terminal=columns > 0, width=columns or 100)

"""`parallel-dl run`: any Python program on N ranks, monitored."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from parallel_dl import launch
from parallel_dl.cli.limits import of_flag, of_ranks, require_count
from parallel_dl.cli.time_limit import MOST_SECONDS
from parallel_dl.errors import InputError, bounded, named
from parallel_dl.files import MOST_TEXT, require_regular
from parallel_dl.launch.environment import WATCHDOG_VARIABLE as WATCHDOG
from parallel_dl.launch.limits import MOST_RANKS
from parallel_dl.launch.tracebacks import CHECKED_VARIABLE as CHECKED
from parallel_dl.launch.tracebacks import FULL_VARIABLE as FULL_TRACEBACK

_COST = (
    "the ranks compare their calls before they make them, which takes some tens of microseconds each; "
    "--unchecked leaves that out"
)
_OWN_FLAG = re.compile(
    r"-n\d*|--ranks(=.*)?|--full-traceback|--timeout(=.*)?|--(un)?checked|--synchronous|--(no-)?wrap"
)


def run(
    context: typer.Context,
    program: Annotated[str, typer.Argument(help="A Python file.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments for the program.")] = None,
    ranks: Annotated[int, typer.Option("-n", "--ranks", help="Number of ranks.")] = 2,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="End after this many seconds, and say where each rank is.")
    ] = None,
    checked: Annotated[
        bool | None,
        typer.Option("--checked/--unchecked", help="Compare the ranks' calls before they are made. [default: checked]"),
    ] = None,
    synchronous: Annotated[
        bool, typer.Option("--synchronous", help="Let each send wait for its receive, as large messages do.")
    ] = False,
    wrap: Annotated[
        bool, typer.Option("--wrap/--no-wrap", help="Watch mpi4py's own communicators, to name what a rank waits for.")
    ] = True,
    full_traceback: Annotated[
        bool, typer.Option("--full-traceback", help="Show the launcher's own frames in tracebacks, too.")
    ] = False,
) -> int:
    """Run a Python program on N ranks.

    If a rank fails, it is named and all ranks end. If ranks wait for each other, you see who waits for whom, and where,
    and all ranks end.
    """
    require_count("ranks", ranks, most=MOST_RANKS)
    with of_flag("program"):
        require_regular(program, "a Python file", MOST_TEXT)
    if launch.inside_mpirun():
        raise InputError("run: starts the ranks itself; call it outside mpirun, or use mpirun python PROGRAM instead")
    _hint(program, arguments or [], context.obj)
    watched = [name for name, wanted in (("synchronous", synchronous), ("unwrapped", not wrap)) if wanted]
    if synchronous and not wrap:
        raise InputError(
            "--synchronous with --no-wrap: sends are made to wait by wrapping mpi4py; leave one of them out"
        )
    if checked is None:
        checked = os.environ.get(CHECKED, "1") not in ("", "0")
    if checked and ranks > 1 and sys.stderr is not None and sys.stderr.isatty():
        print(f"parallel-dl: {_COST}", file=sys.stderr)
    environment = {CHECKED: "1" if checked else "0", **({WATCHDOG: ",".join(watched)} if watched else {})}
    environment |= {FULL_TRACEBACK: "1"} if full_traceback else {}
    if timeout is not None and not 0 < timeout <= MOST_SECONDS:
        raise InputError(f"--timeout {timeout:g}: must be a number of seconds above 0, at most {MOST_SECONDS:g}")
    with of_ranks(f"-n {ranks}", ranks):
        return launch.run(ranks, [program, *(arguments or [])], environment, timeout=timeout)


def _hint(program: str, arguments: Sequence[str], line: Sequence[str]) -> None:
    """Tells where a flag of ours goes that comes after the program, unless a -- before the program says it is meant."""
    at = next((place for place, argument in enumerate(arguments) if _OWN_FLAG.fullmatch(argument)), None)
    if at is None or "--" in line[: len(line) - len(arguments)]:
        return
    valued = arguments[at] in ("-n", "--ranks", "--timeout") and at + 1 < len(arguments)
    flag = bounded(" ".join(arguments[at : at + 2] if valued else [arguments[at]]))
    print(
        f"parallel-dl: {flag} is passed to {named(program)}; "
        f"if it is meant for run, type: parallel-dl run {flag} {named(program)}",
        file=sys.stderr,
    )

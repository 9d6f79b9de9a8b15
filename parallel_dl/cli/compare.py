"""`parallel-dl compare`: a script on several ranks, compared with its own run on one rank, or with another script's."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli.flags import AsJson
from parallel_dl.cli.limits import of_flag, require_count
from parallel_dl.cli.time_limit import MOST_SECONDS
from parallel_dl.errors import InputError, cut, number_of
from parallel_dl.files import MOST_TEXT, require_regular
from parallel_dl.launch.limits import MOST_RANKS

if TYPE_CHECKING:
    from parallel_dl.equivalence.scripts import ScriptRun, Verdict


def compare(
    script: Annotated[str, typer.Argument(help="A Python file.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments for the script, after --.")] = None,
    ranks: Annotated[str, typer.Option("-n", "--ranks", metavar="N,...", help="Numbers of ranks.")] = "1,2",
    serial: Annotated[
        str | None, typer.Option(metavar="FILE", help="Compare with this script on one rank, not with the same one.")
    ] = None,
    steps: Annotated[int, typer.Option(help="End each run after this many updates.")] = 10,
    timeout: Annotated[float, typer.Option(help="Seconds that each run may take.")] = 600.0,
    as_json: AsJson = False,
) -> int:
    """Compare a training script on several ranks with its run on one rank.

    The first number of ranks is what the others are compared with, update by update: gradients and weights decide,
    losses inform. Each run works in a folder of its own. Exit status 1 if a run is different.
    """
    numbers = _numbers(ranks, serial is not None)
    require_count("steps", steps)
    if not 0 < timeout <= MOST_SECONDS:
        raise InputError(f"--timeout {timeout:g}: must be a number of seconds above 0, at most {MOST_SECONDS:g}")
    for flag, path in (("script", script), *([("--serial", serial)] if serial is not None else [])):
        with of_flag(flag):
            require_regular(path, "a Python file", MOST_TEXT)
    if launch.inside_mpirun():
        raise InputError("compare: starts the ranks itself; call it outside mpirun")
    with tempfile.TemporaryDirectory(prefix="pdl-compare-") as folder:
        reference, verdicts = _compared(Path(folder), script, arguments or [], numbers, serial, steps, timeout)
    if as_json:
        print(json.dumps(_as_object(script, serial, reference, verdicts)))
    else:
        _print(reference, verdicts)
    return _status(verdicts)


def _numbers(text: str, has_serial: bool) -> list[int]:
    """The numbers of ranks that were asked for; the first is the reference, unless there is a serial script."""
    found = []
    for word in text.split(","):
        if not word.strip().isascii() or not word.strip().isdigit() or not 1 <= int(word) <= MOST_RANKS:
            raise InputError(f"-n {cut(text)}: expected numbers of ranks between 1 and {MOST_RANKS}, as in 1,2,4")
        found.append(int(word))
    least = 1 if has_serial else 2
    if len(set(found)) < least or len(set(found)) < len(found):
        raise InputError(f"-n {cut(text)}: expected different numbers, at least {least}, as in 1,2,4")
    return found


def _compared(
    folder: Path, script: str, arguments: list[str], numbers: list[int], serial: str | None, steps: int, timeout: float
) -> tuple[ScriptRun, list[Verdict]]:
    """Runs everything: the reference, again, and with weights changed in their last bits; and then the others."""
    from parallel_dl.equivalence.scripts import Verdict, compare_runs, run_script
    from parallel_dl.equivalence.scripts.compared import FAILED, NOT_DETERMINISTIC, not_deterministic

    def runs(path: str, ranks: int, name: str, nudge: bool = False) -> ScriptRun:
        _tell(f"{path} on {number_of(ranks, 'rank')}{name}")
        place = folder / f"{ranks} ranks{name}"
        return run_script(path, arguments, ranks, place, steps, timeout, nudge)

    first = 1 if serial is not None else numbers[0]
    reference = runs(serial or script, first, ", the reference" if serial is None else ", serial")
    others = numbers if serial is not None else numbers[1:]
    if reference.status:
        _tell_end(reference)
        why = f"the run on {number_of(first, 'rank')} ended with status {reference.status}"
        return reference, [Verdict(ranks, FAILED, 0, cause=why) for ranks in others]
    again = runs(serial or script, first, ", again")
    if (why := not_deterministic(reference, again)) or again.status:
        why = why or f"the second run on {number_of(first, 'rank')} ended with status {again.status}"
        return reference, [Verdict(ranks, NOT_DETERMINISTIC, 0, cause=why) for ranks in others]
    nudged = runs(serial or script, first, ", changed in the last bits", nudge=True)
    verdicts = []
    for ranks in others:
        run = runs(script, ranks, "")
        if run.status:
            _tell_end(run)
        verdicts.append(compare_runs(reference, nudged if not nudged.status else None, run))
    return reference, verdicts


def _tell(line: str) -> None:
    """What is going on, for people."""
    if sys.stderr.isatty():
        print(f"parallel-dl: {line} ...", file=sys.stderr, flush=True)


def _tell_end(run: ScriptRun) -> None:
    """The last lines of a run that failed."""
    for line in run.last_lines:
        print(line, file=sys.stderr)


def _print(reference: ScriptRun, verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        against = f" against {reference.ranks}" if reference.ranks > 1 else ""
        print(f"{number_of(verdict.ranks, 'rank')}{against}: {verdict.line}")
        if len(verdict.losses) > 1:
            each = ", ".join(f"{loss:.6g}" for loss in verdict.losses[1:])
            print(f"    losses there: serial {verdict.losses[0]:.6g}; by rank {each}")


def _as_object(script: str, serial: str | None, reference: ScriptRun, verdicts: list[Verdict]) -> dict[str, Any]:
    """The JSON object. An error that is not finite is null."""
    runs = [verdict.as_object() for verdict in verdicts]
    return {"script": script, "serial": serial, "reference_ranks": reference.ranks, "runs": runs}


def _status(verdicts: list[Verdict]) -> int:
    """1 if a run is different or failed; 2 if one cannot be compared; else 0."""
    from parallel_dl.equivalence.scripts.compared import DIFFERENT, EQUAL, FAILED

    found = {verdict.verdict for verdict in verdicts}
    if found & {DIFFERENT, FAILED}:
        return 1
    return 0 if found <= {EQUAL} else 2

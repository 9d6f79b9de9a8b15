"""`parallel-dl diff`: compares two files of tensors, name by name, and describes the differences."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli.flags import AsJson
from parallel_dl.cli.terminal import console
from parallel_dl.errors import InputError, cut, named

if TYPE_CHECKING:
    from parallel_dl.equivalence.compare.arrays import ArraysComparison, TensorDifference

_MOST_ROWS = 50


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A safetensors file, or its shards: A0,A1,... or a folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with, in the same form.")],
    bound: Annotated[
        float | None, typer.Option(help="Largest error that counts as equal. [default: by type; 1e-10 in float64]")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Require exactly equal values.")] = False,
    placement: Annotated[
        str | None, typer.Option(metavar="FILE", help="TOML or JSON file that says how to join shards.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Compare two safetensors files, tensor by tensor, or two records of training, update by update.

    Exit status 1 if they differ. The error of a tensor is the largest |a - b|, relative to its largest |a| or |b|. No
    rank is started.
    """
    if exact and bound is not None:
        raise InputError("--exact and --bound: only one of them")
    if bound is not None and not 0 <= bound < math.inf:
        raise InputError(f"--bound {bound}: must be a finite number, at least 0")
    if is_record(a) or is_record(b):
        return _diff_records(a, b, as_json)
    from parallel_dl.equivalence.compare.files import compare_files, files_of, read_placement

    places = None if placement is None else read_placement(placement)
    if placement is not None and len(files_of(a)) == len(files_of(b)) == 1:
        raise InputError(f"--placement {named(placement)}: each side is one file; valid only where a side has several")
    found = compare_files(a, b, bound, exact, places)
    if launch.mpirun_rank() == 0:  # in a user's mpirun every rank finds the same: one says it
        if as_json:
            print(json.dumps(as_object(found)))
        else:
            _print(found)
    return 0 if found.equal else 1


def is_record(path: str) -> bool:
    """Whether `watch`, or a script under `compare`, has written down its updates in this folder."""
    return os.path.isdir(os.path.join(path, "rank-0"))


def _diff_records(a: str, b: str, as_json: bool) -> int:
    """Compares two records, update by update; A is the one that is right."""
    from parallel_dl.equivalence.scripts import ScriptRun, compare_runs
    from parallel_dl.equivalence.scripts.compared import EQUAL
    from parallel_dl.equivalence.scripts.files import read

    for path in (a, b):
        if not is_record(path):
            raise InputError(f"{named(path)}: is no folder of a record, as the other one is; expected rank-0 in it")
    first, second = (ScriptRun(len(updates), 0, "", updates) for updates in (read(a), read(b)))
    verdict = compare_runs(first, None, second)
    if as_json:
        print(json.dumps(verdict.as_object()))
    else:
        print(verdict.line)
    return 0 if verdict.verdict == EQUAL else 1


def as_object(found: ArraysComparison) -> dict[str, Any]:
    """The JSON object. An error that is not a number is null."""

    def error(tensor: TensorDifference) -> float | None:
        return tensor.error if math.isfinite(tensor.error) else None

    worst = found.worst
    return {
        "equal": found.equal,
        "worst": None if worst is None else {"name": worst.name, "error": error(worst), "bound": worst.bound},
        "tensors": [
            {"name": one.name, "equal": one.equal, "error": error(one), "factor": one.factor, "cause": one.cause}
            for one in found.tensors
        ],
    }


def _print(found: ArraysComparison) -> None:
    screen = console()
    lines = [found.message]
    if found.different:
        lines.append(f"first different, in the order of names: {cut(found.different[0].name)}")
        shown = found.different[:_MOST_ROWS]
        width = max(len(cut(one.name)) for one in shown)
        lines += [f"  {cut(one.name):{width}}  {_number(one.error)}  {one.cause}" for one in shown]
        if len(found.different) > len(shown):
            lines.append(f"  ... and {len(found.different) - len(shown)} more")
        rounds = next((one.rounds for one in found.different if one.rounds is not None), None)
        if rounds is not None:
            lines.append(
                f"After some training in {rounds}, two correct layouts may differ like this: rounding decides "
                "which value is the maximum, and the runs drift apart. Compare the same two runs in float64."
            )
    screen.print(*lines, sep="\n", soft_wrap=True, markup=False)


def _number(error: float) -> str:
    return f"{error:.2e}" if math.isfinite(error) else "       -"

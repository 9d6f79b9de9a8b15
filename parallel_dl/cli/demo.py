"""`parallel-dl demo`: the same training on one rank and on two, side by side; then a planted bug, caught and named."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from parallel_dl import interrupts, launch
from parallel_dl.cli.flags import AsJson
from parallel_dl.cli.limits import require_count
from parallel_dl.errors import InputError
from parallel_dl.launch.limits import MOST_RANKS

_LINES = 10  # of losses, at most
_ENOUGH = 8  # digits
_ENDING_SECONDS = 20.0
BUG = "gradient all-reduce dropped"
NEXT = {
    "verify lenet5_small --ranks 2": "compare every layout of two ranks with the serial run",
    "verify --mutants": "plant all known bugs, one by one",
    "schedule 1f1b --pp 4 --microbatches 8": "draw a pipeline schedule",
}


def _result_of(*arguments: str) -> dict[str, Any]:
    """The JSON object that one of our commands prints. If it prints none, the demo ends with its exit status."""
    command = [sys.executable, "-P", "-m", "parallel_dl", *arguments, "--json"]
    run = subprocess.Popen(command, env=launch.finding_us(), stdout=subprocess.PIPE, text=True)
    try:
        said, _ = run.communicate()
    except BaseException as stopped:  # Ctrl-C, SIGTERM: the command ends its ranks, for which it needs a moment
        interrupted = isinstance(stopped, KeyboardInterrupt)
        run.send_signal(signal.SIGINT if interrupted else signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            run.communicate(timeout=_ENDING_SECONDS)
        run.kill()
        if run.wait() == interrupts.STATUS and interrupted:  # the command has said so
            raise typer.Exit(interrupts.STATUS) from None
        raise
    if not said:
        raise typer.Exit(run.returncode or 1)
    return json.loads(said)


def agreeing_digits(ours: list[float], theirs: list[float]) -> float:
    """The number of decimal digits to which two lists of losses agree: -log10 of the largest relative difference."""
    worst = max((abs(a - b) / max(abs(a), abs(b)) for a, b in zip(ours, theirs) if a != b), default=0.0)
    return -math.log10(worst) if worst else 16.0


def lines_shown(count: int, most: int = _LINES) -> list[int]:
    """Which of `count` lines are shown: the first, the last, and those evenly between."""
    shown = min(count, most)
    return sorted({round(line * (count - 1) / max(shown - 1, 1)) for line in range(shown)})


def _print_runs(one: dict[str, Any], many: dict[str, Any]) -> None:
    print(f"{'update':>6}  {'loss on 1 rank':>20}  {'loss on ' + str(many['ranks']) + ' ranks':>20}")
    for number in lines_shown(min(len(one["losses"]), len(many["losses"]))):
        print(f"{number + 1:>6}  {one['losses'][number]:>20.15f}  {many['losses'][number]:>20.15f}")
    print(f"test accuracy {one['test_accuracy']:>14.2%}  {many['test_accuracy']:>20.2%}")


def _print_verdict(one: dict[str, Any], many: dict[str, Any], digits: float) -> None:
    ours, theirs = len(one["losses"]), len(many["losses"])
    if ours != theirs:
        print(f"THE TWO RUNS DIFFER: {theirs} losses on {many['ranks']} ranks, {ours} on one.")
        return
    if digits < _ENOUGH:
        print(f"THE TWO RUNS DIFFER: the losses agree to only {digits:.1f} digits.")
        return
    print(f"The two runs agree: all {ours} losses to {int(digits)} digits (float64).")
    print("In float32, the default of train, rounding makes them differ sooner: docs/sharp-bits.md says how much.")


def _print_bug(bug: dict[str, Any]) -> None:
    where, _, cause = bug["diagnosis"].partition("; likely ")
    print(f"\nNow planting a bug in a small network on two ranks: {bug['name']}.")
    print(f"  caught: {where}" if bug["caught"] else "  NOT CAUGHT")
    print(f"  named:  {cause}" if bug["named"] else "  NOT NAMED")


def _command() -> str:
    """What to type to call this installation."""
    beside = Path(sys.executable).with_name("parallel-dl")
    found = shutil.which("parallel-dl")
    if found is not None and beside.exists() and os.path.samefile(found, beside):
        return "parallel-dl"
    if beside.exists():
        near = os.path.relpath(beside)
        return str(beside) if near.startswith("..") else near
    return f"{sys.executable} -m parallel_dl"


def demo(
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    ranks: Annotated[int, typer.Option("-n", "--ranks", help="Number of data-parallel ranks.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed for initialization and sample order.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Train a small network on one rank and data parallel on several, and compare every loss.

    Then plant a bug and show how it is caught and named. Exit status 1 if the runs differ or the bug is missed.
    """
    require_count("epochs", epochs)
    require_count("ranks", ranks, most=MOST_RANKS)
    if launch.inside_mpirun():
        raise InputError("demo: starts its ranks itself; call it outside mpirun")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which also ends the command that is running
    if not as_json:
        print(f"Training one network on 1 rank and on {ranks} data-parallel ranks (about five seconds):", flush=True)
    one, many = (
        _result_of("train", "mlp", "--dtype", "float64", "--dp", str(dp), "--epochs", str(epochs), "--seed", str(seed))
        for dp in (1, ranks)
    )
    digits = agreeing_digits(one["losses"], many["losses"])
    agree = len(one["losses"]) == len(many["losses"]) and digits >= _ENOUGH
    if not as_json:
        _print_runs(one, many)
        _print_verdict(one, many, digits)
        sys.stdout.flush()
    (bug,) = _result_of("verify", "--mutant", BUG)["mutants"]
    if as_json:
        print(json.dumps({"agree": agree, "agreeing_digits": digits, "runs": [one, many], "bug": bug}))
    else:
        _print_bug(bug)
        print("\nTry next:")
        for arguments, what in NEXT.items():
            print(f"  {_command()} {arguments:<38}  # {what}")
    return 0 if agree and bug["caught"] and bug["named"] else 1

"""`parallel-dl demo`: the same training on one rank and on two, side by side."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from typing import Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.errors import InputError


def _train(dp: int, epochs: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "parallel_dl", "train", "mlp", "--dtype", "float64", "--json"]
    command += ["--dp", str(dp), "--epochs", str(epochs), "--seed", str(seed)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        raise typer.Exit(run.returncode)
    return json.loads(run.stdout)


def agreeing_digits(ours: list[float], theirs: list[float]) -> float:
    """The number of decimal digits to which two lists of losses agree: -log10 of the largest relative difference."""
    worst = max(abs(a - b) / max(abs(a), abs(b)) for a, b in zip(ours, theirs) if a != b) if ours != theirs else 0.0
    return -math.log10(worst) if worst else 16.0


def demo(
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    ranks: Annotated[int, typer.Option("-n", "--ranks", help="Ranks of the data-parallel run.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of the images.")] = 0,
) -> int:
    """Train the MLP on handwritten digits on one rank and on two data-parallel ranks; compare every loss."""
    if epochs < 1:
        raise InputError(f"--epochs {epochs}: must be at least 1")
    if ranks < 1:
        raise InputError(f"--ranks {ranks}: must be at least 1")
    if launch.inside_mpirun():
        raise InputError("demo: starts its ranks itself; call it outside mpirun")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # subprocess.run then ends what it has started
    one, many = _train(1, epochs, seed), _train(ranks, epochs, seed)
    print(f"{'step':>5}  {'loss on 1 rank':>20}  {f'loss on {ranks} ranks':>20}")
    for step, (a, b) in enumerate(zip(one["losses"], many["losses"]), start=1):
        print(f"{step:>5}  {a:>20.15f}  {b:>20.15f}")
    print(f"test accuracy  {one['test_accuracy']:>12.2%}  {many['test_accuracy']:>20.2%}")
    digits = agreeing_digits(one["losses"], many["losses"])
    if len(one["losses"]) == len(many["losses"]) and digits >= 8:
        print(f"The two runs agree: all {len(one['losses'])} losses to {int(digits)} digits (float64).")
        return 0
    print(f"THE TWO RUNS DIFFER: the losses agree to {digits:.1f} digits only.")
    return 1

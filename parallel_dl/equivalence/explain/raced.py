"""What stress has found in a run: a race, by the buffer that was used too early or by what is not a number."""

from __future__ import annotations

import dataclasses

import numpy as np

from parallel_dl.equivalence.compare.runs import Comparison, Difference
from parallel_dl.equivalence.runs.record import Run
from parallel_dl.mpi import Communicator, stress


def race_in(run: Run, comm: Communicator) -> str | None:
    """The first race of a run on the ranks of `comm`, the same on all of them; None if there is none, or no stress."""
    if not stress.collects():
        return None
    found = stress.races(comm, *_not_numbers(run))
    return found[0] if found else None


def told(comparison: Comparison, race: str) -> Comparison:
    """The comparison, different by this race."""
    message = f"DIFFERENT: a race; {race}"
    return dataclasses.replace(comparison, equal=False, worst=Difference(f"a race; {race}", 0, np.inf), message=message)


def _not_numbers(run: Run) -> list[str]:
    """The first quantity that is not a number, which stress makes of what is read before it is complete."""
    said = "is not a number: something was read before it was complete"
    for step, loss in enumerate(run.losses):
        kinds = {"gradient": run.gradients, "state": run.state, "weight": run.weights}
        arrays = {f"{kind} of {name}": a for kind, of in kinds.items() for name, a in of[step].items()}
        for what, array in {"loss": np.array(loss), **arrays}.items():
            if np.isnan(array).any():
                return [f"{what} at step {step} {said}"]
    return []

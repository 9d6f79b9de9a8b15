"""Does `Trainer.fit` make the updates that were compared step by step?"""

from __future__ import annotations

import math

import numpy as np

from parallel_dl.datasets import Dataset
from parallel_dl.equivalence.compare.runs import BOUNDS
from parallel_dl.equivalence.runs.record import Experiment, Run, start
from parallel_dl.errors import InputError, number_of
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh


def wrong_fit(experiment: Experiment, layout: Layout, mesh: Mesh, run: Run) -> str | None:
    """The first difference, the same on every rank, or None. `run` is the run of these steps under the layout.

    Experiments that change their network during training are skipped, since `fit` cannot do that.
    """
    if experiment.changes is not None:
        return None
    x, y = experiment.x, experiment.y
    data = Dataset("samples", x, y, x, y, classes=1 + int(y.max()) if y.dtype.kind in "iu" else None)
    reports: list[tuple[int, int, float]] = []
    trainer = start(experiment, layout, mesh)
    found = trainer.fit(
        data, experiment.batch_size, experiment.seed, steps=len(run.losses), report=lambda *told: reports.append(told)
    )
    digest, updates = trainer.weights_sha256(), trainer.updates
    trainer.free()
    said, after, told = None, _after_epochs(experiment, run), [report[:2] for report in reports]
    if len(found.losses) != len(run.losses):
        said = f"which has {number_of(len(found.losses), 'loss')} for {number_of(len(run.losses), 'update')},"
    elif not np.allclose(found.losses, run.losses, rtol=BOUNDS[experiment.dtype], atol=0, equal_nan=True):
        said = f"whose losses are {found.losses} in place of {run.losses},"
    elif updates != len(run.losses):
        said = f"which counts {updates} of {number_of(len(run.losses), 'update')},"
    elif (wrong := _wrong_epochs(experiment, trainer.layout, 2 * _of_epoch(experiment, run))) is not None:
        said = f"which {wrong},"
    elif told != after:
        said = f"which reports (updates done, in all) {told} in place of {after},"
    bits = np.array(found.losses).tobytes()  # NaN is not equal to itself, but its bits are
    every = mesh.world.all_gather_object((said, digest, bits))
    first = next((of_rank[0] for of_rank in every if of_rank[0] is not None), None)
    if first is None and any(of_rank[1:] != every[0][1:] for of_rank in every):
        first = "after which ranks have other losses or weights than the first,"
    return None if first is None else f"Trainer.fit, {first}"


def _after_epochs(experiment: Experiment, run: Run) -> list[tuple[int, int]]:
    """(updates done, updates in all) at the end of each epoch, and at the end."""
    in_all, of_epoch = len(run.losses), _of_epoch(experiment, run)
    return [(min(done, in_all), in_all) for done in range(of_epoch, in_all + of_epoch, of_epoch)]


def _of_epoch(experiment: Experiment, run: Run) -> int:
    """How many updates an epoch has: an asynchronous schedule makes several for each batch."""
    batches = math.ceil(len(experiment.x) / experiment.batch_size)
    return batches * len(run.losses) // experiment.steps


def _wrong_epochs(experiment: Experiment, layout: Layout, updates: int) -> str | None:
    """What the layout says of two epochs, if that is not so many updates."""
    samples, batch_size = len(experiment.x), experiment.batch_size
    last = samples - (math.ceil(samples / batch_size) - 1) * batch_size
    if last < layout.microbatches:  # too few samples for an update with each microbatch
        return None
    try:
        found = layout.updates(samples, batch_size, epochs=2)
    except InputError as error:
        return f"refuses two epochs: {error}"
    return None if found == updates else f"would make {found} updates in two epochs, not {updates}"

"""Does a rank hold and send what the arithmetic on shapes says? A ledger counts one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from parallel_dl import nn, splits
from parallel_dl.cost.hybrid import traffic
from parallel_dl.cost.shares import loss_messages
from parallel_dl.equivalence.runs.record import Experiment, batches, start
from parallel_dl.errors import number_of
from parallel_dl.layout import Layout
from parallel_dl.mpi import LedgerRow, Mesh
from parallel_dl.trainer import Trainer

Counts = dict[tuple[str, str | None, str], tuple[int, int, int]]
"""(layer, direction, call) -> messages, values, bytes"""


def wrong_count(experiment: Experiment, layout: Layout, mesh: Mesh) -> str | None:
    """Where the ledger of `mesh` and the plan differ first, the same on every rank; None where they do not.

    Looked at are layouts that split layers and nothing else but the batch, and hybrids, with the loss that the plan
    knows, and networks of which every weight is trained: the plan sends gradients back to all of them.
    """
    ledger = mesh.world.ledger
    plain = layout.splits_layers and not layout.is_pipelined and not layout.reproducible
    known = plain or (layout.hybrid is not None and not layout.variable_batch and layout.microbatches == 1)
    if ledger is None or not known or experiment.loss is not nn.cross_entropy:
        return None
    if not all(parameter.requires_grad for parameter in experiment.build().parameters()):
        return None
    trainer = start(experiment, dataclasses.replace(layout, microbatches=1), mesh, "mpi")
    batch = next(iter(batches(experiment, trainer)))
    ledger.clear()
    with ledger.counting():
        trainer.compute_gradients(batch)
    rows = ledger.rows()
    ledger.clear()
    itemsize = np.dtype(experiment.dtype).itemsize
    if layout.hybrid is None:
        said = _wrong_size(trainer) or _wrong_messages(trainer, rows, len(batch.x), itemsize)
    else:
        said = _wrong_traffic(experiment, layout, mesh, rows, batch.size, itemsize)
    trainer.free()
    told = mesh.world.all_gather_object(said)
    return next((f"on rank {rank}: {of_rank}" for rank, of_rank in enumerate(told) if of_rank), None)


def _wrong_size(trainer: Trainer) -> str | None:
    assert trainer.parallel is not None
    held = sum(parameter.size for parameter in trainer.parameters)
    planned = trainer.parallel.plan.parameters(trainer.mesh.model.rank)
    return None if held == planned else f"what is held: weights of {number_of(held, 'value')}, planned {planned:,}"


# -- split layers --------------------------------------------------------------------------------------------------
def _wrong_messages(trainer: Trainer, rows: list[LedgerRow], samples: int, itemsize: int) -> str | None:
    assert trainer.parallel is not None
    counted: Counts = {
        (row.layer, row.direction, row.call): (row.messages, row.values, row.bytes)
        for row in rows
        if row.axis == "model" and row.layer != "gradients"
    }
    planned = _planned(trainer.parallel.plan, trainer.mesh.model.rank, samples, itemsize)
    return next(
        (
            f"what is sent: {' '.join(map(str, key))}: counted messages, values and bytes are "
            f"{counted.get(key, (0, 0, 0))}, planned {planned.get(key, (0, 0, 0))}"
            for key in sorted({*counted, *planned}, key=str)
            if counted.get(key, (0, 0, 0)) != planned.get(key, (0, 0, 0))
        ),
        None,
    )


def _planned(plan: splits.Plan, rank: int, samples: int, itemsize: int) -> Counts:
    found: Counts = {}
    for layer, message in _messages(plan, rank, samples):
        values = message.values
        key = layer, message.direction, message.call
        before = found.get(key, (0, 0, 0))
        more = message.messages, values, values * (message.itemsize or itemsize)
        found[key] = before[0] + more[0], before[1] + more[1], before[2] + more[2]
    return found


def _messages(plan: splits.Plan, rank: int, samples: int) -> Iterator[tuple[str, splits.Message]]:
    yield from splits.messages(plan, rank, samples)
    for message in loss_messages(plan):
        yield "loss", message._replace(values=message.values * samples)


# -- hybrids -------------------------------------------------------------------------------------------------------
def _wrong_traffic(
    experiment: Experiment, layout: Layout, mesh: Mesh, rows: list[LedgerRow], samples: int, itemsize: int
) -> str | None:
    """Bytes, by what they are of. What batch norm exchanges in front of the Flatten is in no plan."""
    shape = experiment.x.shape[1:]
    said = traffic(experiment.build(), shape, layout.dp, samples, layout.split, mesh.data.rank, itemsize)
    planned = {
        "activations forward": said.activations,
        "activations backward": said.activation_gradients,
        "targets forward": said.targets,
        "loss forward": said.loss,
        "gradients backward": said.convolution_gradients + said.partial_gradients,
        "fully connected": said.fully_connected,
    }
    counted = dict.fromkeys(planned, 0)
    for row in rows:
        what = f"{row.layer} {row.direction}"
        what = "fully connected" if what not in planned and row.axis == "model" else what
        if what in counted:
            counted[what] += row.bytes
    return next(
        (
            f"what is sent: {what}: {number_of(counted[what], 'byte')}, planned {planned[what]:,}"
            for what in planned
            if counted[what] != planned[what]
        ),
        None,
    )

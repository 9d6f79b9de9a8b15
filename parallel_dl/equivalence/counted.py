"""Does a rank send along the model axis what the plan of the splits says? Counted by a ledger, in one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from parallel_dl import nn, splits
from parallel_dl.cost.shares import loss_messages
from parallel_dl.equivalence.record import Experiment, batches, start
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh

Counts = dict[tuple[str, str | None, str], tuple[int, int, int]]
"""(layer, direction, call) -> messages, values, bytes"""


def wrong_count(experiment: Experiment, layout: Layout, mesh: Mesh) -> str | None:
    """Where the ledger of `mesh` and the plan differ first, the same on every rank; None where they do not.

    Looked at are layouts that split layers and nothing else but the batch, with the loss that the plan knows, and
    networks of which every weight is trained: the plan sends gradients back to all of them.
    """
    ledger = mesh.world.ledger
    plain = layout.splits_layers and not layout.is_pipelined and not layout.reproducible
    if ledger is None or not plain or experiment.loss is not nn.cross_entropy:
        return None
    if not all(parameter.requires_grad for parameter in experiment.build().parameters()):
        return None
    trainer = start(experiment, dataclasses.replace(layout, microbatches=1), mesh)
    assert trainer.parallel is not None
    batch = next(iter(batches(experiment, trainer)))
    ledger.clear()
    with ledger.counting():
        trainer.compute_gradients(batch)
    counted: Counts = {
        (row.layer, row.direction, row.call): (row.messages, row.values, row.bytes)
        for row in ledger.rows()
        if row.axis == "model"
    }
    ledger.clear()
    itemsize = np.dtype(experiment.dtype).itemsize
    planned = _planned(trainer.parallel.plan, mesh.model.rank, len(batch.x), itemsize)
    trainer.free()
    said = next(
        (
            f"{' '.join(map(str, key))}: counted messages, values and bytes are {counted.get(key, (0, 0, 0))}, planned "
            f"{planned.get(key, (0, 0, 0))}"
            for key in sorted({*counted, *planned}, key=str)
            if counted.get(key, (0, 0, 0)) != planned.get(key, (0, 0, 0))
        ),
        None,
    )
    told = mesh.world.all_gather_object(said)
    return next((f"what is sent, on rank {rank}: {of_rank}" for rank, of_rank in enumerate(told) if of_rank), None)


def _planned(plan: splits.Plan, rank: int, samples: int, itemsize: int) -> Counts:
    found: Counts = {}
    for layer, message in _messages(plan, rank):
        values = message.values * samples + message.fixed
        key = layer, message.direction, message.call
        before = found.get(key, (0, 0, 0))
        more = message.messages, values, values * (message.itemsize or itemsize)
        found[key] = before[0] + more[0], before[1] + more[1], before[2] + more[2]
    return found


def _messages(plan: splits.Plan, rank: int) -> Iterator[tuple[str, splits.Message]]:
    yield from splits.messages(plan, rank)
    for message in loss_messages(plan):
        yield "loss", message

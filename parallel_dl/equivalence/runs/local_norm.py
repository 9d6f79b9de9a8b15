"""The serial program of replicas with local batch norm: each share of the batch is normalised by itself.

Running statistics are the mean of those of the shares.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from parallel_dl import nn
from parallel_dl.datasets import Batch, Loader, Share
from parallel_dl.equivalence.rounding.own_rules import before_update, magnitudes_of
from parallel_dl.equivalence.rounding.samples import (
    Random,
    compute_gradients,
    give_gradient,
    one_after_another,
    sums_of_magnitudes,
)
from parallel_dl.equivalence.runs.record import Experiment, Run, changes_of, update
from parallel_dl.layout import Layout
from parallel_dl.trainer import Trainer


def local_norm(experiment: Experiment, layout: Layout, trainer: Trainer, run: Run, random: Random) -> None:
    network = trainer.network
    magnitudes = magnitudes_of(network, trainer.optimizer)
    changes = changes_of(experiment, trainer)
    for of_ranks in itertools.islice(_shares(experiment, layout), experiment.steps):
        next(changes, None)
        before = {name: array.copy() for name, array in network.named_buffers()}
        means = {name: np.zeros(array.shape) for name, array in before.items()}
        losses, sums = np.zeros(1), {name: np.zeros(p.shape) for name, p in network.named_parameters()}
        loss, summands = 0.0, []
        for batch in of_ranks:
            _set(network, before)
            if run.magnitudes is not None:
                measured = sums_of_magnitudes(trainer, batch)
                losses += measured[0]
                for name, array in measured[1].items():
                    sums[name] += array
            loss += compute_gradients(trainer, batch, random)
            summands.append({name: np.array(p.grad) for name, p in network.named_parameters() if p.grad is not None})
            for name, array in network.named_buffers():
                means[name] += array / len(of_ranks)
        _set(network, means)
        for name, parameter in network.named_parameters():
            give_gradient(parameter, one_after_another([own[name] for own in summands if name in own]))
        run.losses.append(loss)
        run.gradients.append({name: np.array(p.grad) for name, p in network.named_parameters() if p.grad is not None})
        before_update(magnitudes)
        clipped = update(trainer, run)
        if run.magnitudes is not None:
            run.magnitudes.append({"losses": {"": losses}, "gradients": sums, **magnitudes.update(sums, clipped)})


def _shares(experiment: Experiment, layout: Layout) -> Iterator[list[Batch]]:
    """Of every step: the parts of the batch that the ranks of the data axis have."""
    m, ranks = layout.microbatches, layout.dp
    whole = Loader(experiment.x, experiment.y, experiment.batch_size, seed=experiment.seed, microbatches=m)
    for batch in (batch for epoch in itertools.count() for batch in whole.epoch(epoch)):
        of_ranks: list[list[Share]] = [[] for _ in range(ranks)]
        for part in batch.microbatches:
            for own, places in zip(of_ranks, np.array_split(np.arange(len(part.x)), ranks)):
                first = int(places[0]) if len(places) else 0
                own.append(Share(part.x[places], part.y[places], part.first + first, part.size, part.of_all))
        yield [Batch(batch.step, batch.size, parts) for parts in of_ranks]


def _set(network: nn.Module, buffers: Mapping[str, np.ndarray]) -> None:
    for name, array in network.named_buffers():
        array[...] = buffers[name]

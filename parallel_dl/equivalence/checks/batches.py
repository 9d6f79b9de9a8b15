"""Do the ranks' shares make up the batches? (The serial run uses the same loader, and could be wrong, too.)"""

from __future__ import annotations

import numpy as np

from parallel_dl.datasets import Loader
from parallel_dl.equivalence.runs.record import Experiment
from parallel_dl.errors import number_of
from parallel_dl.layout import Layout

SHUFFLED = 20  # samples: of so many, two random orders are as good as never the same by chance


def wrong_batches(experiment: Experiment, layout: Layout) -> str | None:
    """What is wrong with the first epoch's shares of a layout's ranks, if anything; computed on one rank.

    Together the ranks of the data axis have each microbatch of the batch, in order; an epoch has every sample once; the
    size by which losses divide is the number of samples in the batch, `first` is where a share begins in it, and
    `of_all` the number of samples of the microbatch. Another epoch or another seed has another order.
    """
    samples = np.arange(len(experiment.x))  # in place of data: which sample is it?
    of_rank = [
        list(
            Loader(
                samples,
                samples,
                experiment.batch_size,
                seed=experiment.seed,
                rank=rank,
                ranks=layout.dp,
                microbatches=layout.microbatches,
            ).epoch(0)
        )
        for rank in range(layout.dp)
    ]
    seen: list[int] = []
    for step, of_step in enumerate(zip(*of_rank)):
        size = min(experiment.batch_size, len(samples) - len(seen))
        at, wrong = 0, None
        for number in range(layout.microbatches):
            of_all = sum(len(batch.microbatches[number].x) for batch in of_step)
            for rank, batch in enumerate(of_step):
                part = batch.microbatches[number]
                where = f"step {step}, microbatch {number}, rank {rank}"
                if part.size != size or batch.size != size:
                    return f"{where}: divides by {part.size}, but the batch has {number_of(size, 'sample')}"
                if len(part.x) and part.first != at:
                    return f"{where}: its share begins at sample {part.first} of the batch, expected {at}"
                if not np.array_equal(part.x, part.y):
                    return f"{where}: targets of other samples"
                at += len(part.x)
                seen += part.x.tolist()
                if part.of_all != of_all:
                    wrong = f"{where}: says {number_of(part.of_all, 'sample')} on all ranks, which have {of_all}"
        if at != size:
            return f"step {step}: the ranks have {number_of(at, 'sample')} of a batch of {size}"
        if wrong is not None:
            return wrong
    if sorted(seen) != samples.tolist():
        return "an epoch does not have every sample once"
    if len(samples) >= SHUFFLED:
        orders = [_order(samples, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
        for what, other in (("epoch", orders[1]), ("seed", orders[2])):
            if orders[0] == other:
                return f"another {what} has the same order of samples"
    return None


def _order(samples: np.ndarray, seed: int, epoch: int) -> list[int]:
    (batch,) = Loader(samples, samples, len(samples), seed=seed).epoch(epoch)
    return batch.x.tolist()

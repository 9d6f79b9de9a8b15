"""Bugs of data parallelism: shares of a batch, masks, sums over the replicas, counts of updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parallel_dl import nn, partition
from parallel_dl.data_parallel import gradients
from parallel_dl.data_parallel.gradients import GradientAllReduce
from parallel_dl.datasets import Batch, Loader, Share
from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, exchanged, rank_in_job
from parallel_dl.equivalence.mutants.networks import DP
from parallel_dl.metrics import Tally
from parallel_dl.mpi import world
from parallel_dl.nn import layers
from parallel_dl.trainer import Trainer


# -- what a rank is given --------------------------------------------------------------------------------------------
def _shares(change: Callable[[Loader, Share, np.ndarray], Share]) -> Plant:
    """Lets a loader of several ranks give other shares: `change` gets the loader, a share, and its batch's indices."""

    def wrong(right: Any, loader: Loader, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = loader.order(epoch)
        for batch in right(loader, epoch, start):
            indices = order[batch.step * loader.batch_size :][: batch.size]
            shares = [change(loader, one, indices) if loader.ranks > 1 else one for one in batch.microbatches]
            yield Batch(batch.step, batch.size, shares)

    return exchanged(Loader, "epoch", wrong)


def _divided_by_share(loader: Loader, one: Share, indices: np.ndarray) -> Share:
    per_microbatch = (partition.share(len(indices), loader.microbatches, m) for m in range(loader.microbatches))
    own = (partition.share(cut.stop - cut.start, loader.ranks, loader.rank) for cut in per_microbatch)
    return dataclasses.replace(one, size=sum(cut.stop - cut.start for cut in own))


def _divided_by_microbatch(loader: Loader, one: Share, indices: np.ndarray) -> Share:
    return dataclasses.replace(one, size=max(1, one.of_all))


def _next_samples(loader: Loader, one: Share, indices: np.ndarray) -> Share:
    chosen = np.roll(indices, -1)[one.first : one.first + len(one.x)]
    return dataclasses.replace(one, x=loader.x[chosen], y=loader.y[chosen])


def _swapped_samples(loader: Loader, one: Share, indices: np.ndarray) -> Share:
    """Samples of one rank, targets of its neighbour."""
    return dataclasses.replace(_next_samples(loader, one, indices), x=one.x)


# -- gradients -------------------------------------------------------------------------------------------------------
def _local_gradients(scale: Callable[[GradientAllReduce], float]) -> Plant:
    """Multiplies the ranks' gradients before they are summed."""

    def wrong(right: Any, reduction: GradientAllReduce) -> None:
        for parameter in reduction.parameters:
            if parameter.grad is not None and reduction.comm.size > 1:
                parameter.grad *= scale(reduction)
        right(reduction)

    return exchanged(GradientAllReduce, "all_reduce", wrong)


def _only_last_microbatch(right: Any, network: nn.Module, *position: Any) -> nn.Module:
    """What earlier microbatches have left is cleared when the network comes to the next one."""
    if world().size > 1:
        network.zero_grad()
    return right(network, *position)


# -- masks, weights, counts ------------------------------------------------------------------------------------------
def _masks_by_rank(right: Any, seed: int, *others: Any) -> np.ndarray:
    return right(seed + rank_in_job(), *others)


def _masks_by_share(right: Any, seed: int, step: int, name: str, shape: Any, first: Any, p: float) -> np.ndarray:
    """Every rank counts its samples from 0."""
    return right(seed, step, name, shape, 0 if rank_in_job() else first, p)


def _rate_times_replicas(right: Any, trainer: Trainer, *arguments: Any, **named: Any) -> None:
    """The learning rate is scaled with the ranks, as for a mean of means."""
    right(trainer, *arguments, **named)
    trainer.optimizer.lr = trainer.optimizer.rate * trainer.mesh.world.size


def _test_loss_of_one_rank(right: Any, tally: Tally, *arguments: Any) -> None:
    """Losses of the test set are those of the first rank's samples."""
    right(tally, *arguments)
    tally.sum_of_losses *= rank_in_job() == 0


def _updates_by_replica(right: Any, trainer: Trainer) -> float:
    """Every replica's share counts as an update: masks and rates run ahead in the next step."""
    scale = right(trainer)
    trainer.updates += trainer.mesh.data.size - 1
    return scale


_SUM = GradientAllReduce, "all_reduce"


def _mutant(name: str, plant: Plant, *says: str, network: str = "fully") -> Mutant:
    return Mutant(name, network, DP, plant, says)


MUTANTS: tuple[Mutant, ...] = (
    _mutant("loss divided by the share's size", _shares(_divided_by_share), "own share"),
    _mutant("gradients averaged over replicas", _local_gradients(lambda r: 1 / r.comm.size), "divided by 2"),
    _mutant("gradients counted once per replica", _local_gradients(lambda r: r.comm.size), "2 times"),
    _mutant(
        "gradient all-reduce dropped",
        exchanged(*_SUM, lambda right, reduction: None),
        "missing reduction over the replicas",
    ),
    _mutant("one rank's gradients negated", _local_gradients(lambda r: 1 - 2 * rank_in_job()), "-1 times"),
    _mutant("data shard off by one", _shares(_next_samples), "data shard out of place"),
    _mutant("targets of the next sample", _shares(_swapped_samples), "it has targets"),
    _mutant(
        "gradients not accumulated", exchanged(nn.Module, "set_position", _only_last_microbatch), "not accumulated"
    ),
    _mutant("microbatch loss not scaled", _shares(_divided_by_microbatch), "size of the microbatch"),
    _mutant(
        "loss not summed over replicas",
        exchanged(Trainer, "sum_losses", lambda right, trainer, local: local),
        "not summed over the ranks",
    ),
    _mutant(
        "learning rate times replicas", exchanged(Trainer, "__init__", _rate_times_replicas), "the update is 2 times"
    ),
    _mutant(
        "batch norm unsynchronised",
        exchanged(gradients, "synchronize_batch_norm", lambda right, network, comm: None),
        "batch norm statistics",
        network="images",
    ),
    _mutant("dropout masks by rank", exchanged(layers, "keep_mask", _masks_by_rank), "dropout mask"),
    _mutant(
        "dropout samples counted from 0 on each rank", exchanged(layers, "keep_mask", _masks_by_share), "dropout mask"
    ),
    _mutant("test loss of one rank", exchanged(Tally, "add", _test_loss_of_one_rank), "test loss"),
    _mutant(
        "updates counted once per replica",
        exchanged(Trainer, "update", _updates_by_replica),
        "dropout mask",
        "number of updates",
    ),
)

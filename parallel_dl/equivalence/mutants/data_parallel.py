"""Bugs of data parallelism: shares of a batch, masks, sums over the replicas, counts of updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from parallel_dl import nn, partition
from parallel_dl.data_parallel import gradients
from parallel_dl.data_parallel.gradients import GradientAllReduce
from parallel_dl.datasets import Batch, Loader, Share
from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, rank_in_job, replaced
from parallel_dl.equivalence.mutants.networks import DP, PIPE
from parallel_dl.trainer import Trainer


# -- what a rank is given --------------------------------------------------------------------------------------------
def _batches(change: Callable[[Loader, Share, np.ndarray, int], Share]) -> Plant:
    """Lets a loader of several ranks give other shares: `change` gets the loader, a share, its batch and its start."""

    def make(before: Any) -> Any:
        def wrong(loader: Loader, order: np.ndarray, step: int) -> Batch:
            batch = before(loader, order, step)
            if loader.ranks == 1:
                return batch
            indices = order[step * loader.batch_size : (step + 1) * loader.batch_size]
            parts = [change(loader, part, indices, part.first) for part in batch.microbatches]
            return Batch(batch.step, batch.size, parts)

        return wrong

    return lambda stack: replaced(stack, Loader, "_batch", make)


def _divide_by_share(loader: Loader, part: Share, indices: np.ndarray, first: int) -> Share:
    per_microbatch = (partition.share(len(indices), loader.microbatches, m) for m in range(loader.microbatches))
    own = (partition.share(cut.stop - cut.start, loader.ranks, loader.rank) for cut in per_microbatch)
    return dataclasses.replace(part, size=sum(cut.stop - cut.start for cut in own))


def _next_samples(loader: Loader, part: Share, indices: np.ndarray, first: int) -> Share:
    chosen = np.roll(indices, -1)[first : first + len(part.x)]
    return dataclasses.replace(part, x=loader.x[chosen], y=loader.y[chosen])


def _swapped_samples(loader: Loader, part: Share, indices: np.ndarray, first: int) -> Share:
    """Samples of one rank, targets of its neighbour."""
    chosen = np.roll(indices, -1)[first : first + len(part.x)]
    return dataclasses.replace(part, y=loader.y[chosen])


# -- gradients -------------------------------------------------------------------------------------------------------
def _local_gradients(scale: Callable[[GradientAllReduce], float]) -> Plant:
    """Multiplies the ranks' gradients before they are summed."""

    def make(before: Any) -> Any:
        def wrong(reduction: GradientAllReduce) -> None:
            for parameter in reduction.parameters:
                if parameter.grad is not None and reduction.comm.size > 1:
                    parameter.grad *= scale(reduction)
            before(reduction)

        return wrong

    return lambda stack: replaced(stack, GradientAllReduce, "all_reduce", make)


def _no_all_reduce(stack: ExitStack) -> None:
    replaced(stack, GradientAllReduce, "all_reduce", lambda before: lambda reduction: None)


def _only_last_microbatch(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(trainer: Trainer, microbatch: Share) -> None:
            if trainer.mesh.world.size > 1:
                trainer.optimizer.zero_grad()
            before(trainer, microbatch)

        return wrong

    replaced(stack, Trainer, "_take", make)


def _microbatch_is_batch(stack: ExitStack) -> None:
    """Each microbatch's loss is divided by its own size."""

    def make(before: Any) -> Any:
        def wrong(loader: Loader, order: np.ndarray, step: int) -> Batch:
            batch = before(loader, order, step)
            if loader.ranks == 1:
                return batch
            parts = [dataclasses.replace(part, size=max(1, part.of_all)) for part in batch.microbatches]
            return Batch(batch.step, batch.size, parts)

        return wrong

    replaced(stack, Loader, "_batch", make)


# -- batch norm, masks, weights --------------------------------------------------------------------------------------
def _local_batch_norm(stack: ExitStack) -> None:
    replaced(stack, gradients, "synchronize_batch_norm", lambda before: lambda network, comm: None)


def _masks_by_rank(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(layer: nn.Dropout, seed: int, *arguments: Any) -> np.ndarray:
            return before(layer, seed + rank_in_job(), *arguments)

        return wrong

    replaced(stack, nn.Dropout, "keep", make)


def _masks_by_share(stack: ExitStack) -> None:
    """Every rank counts its samples from 0."""

    def make(before: Any) -> Any:
        def wrong(layer: nn.Dropout, seed: int, step: int, name: str, shape: Any, first: Any) -> np.ndarray:
            return before(layer, seed, step, name, shape, 0 if rank_in_job() else first)

        return wrong

    replaced(stack, nn.Dropout, "keep", make)


def _seed_by_rank(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(network: nn.Module, seed: int = 0, *arguments: Any, **named: Any) -> nn.Module:
            return before(network, seed + rank_in_job(), *arguments, **named)

        return wrong

    replaced(stack, nn.Module, "initialize", make)


def _rate_times_replicas(stack: ExitStack) -> None:
    """The learning rate is scaled with the ranks, as for a mean of means."""

    def make(before: Any) -> Any:
        def wrong(trainer: Trainer, *arguments: Any, **named: Any) -> None:
            before(trainer, *arguments, **named)
            trainer.optimizer.lr = trainer.optimizer.rate * trainer.mesh.world.size

        return wrong

    replaced(stack, Trainer, "__init__", make)


def _loss_not_summed(stack: ExitStack) -> None:
    replaced(stack, Trainer, "sum_losses", lambda before: lambda trainer, local: local)


def _test_loss_of_one_rank(stack: ExitStack) -> None:
    """Losses of the test set are those of the first rank's samples."""

    def make(before: Any) -> Any:
        def wrong(trainer: Trainer, tallies: Sequence[Any], samples: int) -> Any:
            for tally in tallies:
                tally.sum_of_losses *= trainer.mesh.world.rank == 0
            return before(trainer, tallies, samples)

        return wrong

    replaced(stack, Trainer, "_evaluation", make)


def _updates_by_replica(stack: ExitStack) -> None:
    """Every replica's share counts as an update: masks and rates run ahead in the next step."""

    def make(before: Any) -> Any:
        def wrong(trainer: Trainer) -> float:
            scale = before(trainer)
            trainer.updates += trainer.mesh.data.size - 1
            return scale

        return wrong

    replaced(stack, Trainer, "update", make)


MUTANTS: tuple[Mutant, ...] = (
    Mutant("loss divided by the share's size", "fully", DP, _batches(_divide_by_share), ("own share",)),
    Mutant(
        "gradients averaged over replicas", "fully", DP, _local_gradients(lambda r: 1 / r.comm.size), ("divided by 2",)
    ),
    Mutant("gradients counted once per replica", "fully", DP, _local_gradients(lambda r: r.comm.size), ("2 times",)),
    Mutant("gradient all-reduce dropped", "fully", DP, _no_all_reduce, ("missing reduction over the replicas",)),
    Mutant(
        "one rank's gradients negated", "fully", DP, _local_gradients(lambda r: 1 - 2 * rank_in_job()), ("-1 times",)
    ),
    Mutant("data shard off by one", "fully", DP, _batches(_next_samples), ("data shard out of place",)),
    Mutant("targets of the next sample", "fully", DP, _batches(_swapped_samples), ("it has targets",)),
    Mutant("gradients not accumulated", "fully", DP, _only_last_microbatch, ("not accumulated",)),
    Mutant("microbatch loss not scaled", "fully", DP, _microbatch_is_batch, ("size of the microbatch",)),
    Mutant("loss not summed over replicas", "fully", DP, _loss_not_summed, ("not summed over the ranks",)),
    Mutant("learning rate times replicas", "fully", DP, _rate_times_replicas, ("the update is 2 times",)),
    Mutant("batch norm unsynchronised", "images", DP, _local_batch_norm, ("batch norm statistics",)),
    Mutant("dropout masks by rank", "fully", DP, _masks_by_rank, ("dropout mask",)),
    Mutant("dropout samples counted from 0 on each rank", "fully", DP, _masks_by_share, ("dropout mask",)),
    Mutant("another seed on one rank", "fully", PIPE, _seed_by_rank, ("seed",)),
    Mutant("test loss of one rank", "fully", DP, _test_loss_of_one_rank, ("test loss",)),
    Mutant("updates counted once per replica", "fully", DP, _updates_by_replica, ("dropout mask", "number of updates")),
)

"""Bugs of programs that change their state on one rank alone: its weights, its gradients, its network.

Nothing would be wrong at once: the replicas drift apart. The all-reduce notices it, names the rank, and refuses the
step on every rank before a weight is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.data_parallel.gradients import GradientAllReduce
from parallel_dl.datasets import Batch
from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, exchanged, rank_in_job
from parallel_dl.equivalence.mutants.networks import DP
from parallel_dl.trainer import Trainer


def _before_second_step(change: Callable[[Any], None]) -> Plant:
    """`change` gets the network of the last rank, which has made one step."""

    def wrong(right: Any, trainer: Trainer, batch: Batch) -> float:
        if rank_in_job() and trainer.updates == 1:
            change(trainer.network)
        return right(trainer, batch)

    return exchanged(Trainer, "compute_gradients", wrong)


def _halve(network: Any) -> None:
    network.fc2.weight.data = network.fc2.weight.data * 0.5


def _load_halves(network: Any) -> None:
    network.load_state_dict({name: 0.5 * array for name, array in network.state_dict().items()})


def _scale_scores(network: Any) -> None:
    """By a weight of their own, which no optimizer and no all-reduce was given."""
    network.fc4.scale = nn.Parameter((6,), nn.initializers.constant(1.0))
    network.fc4.register_forward_hook(lambda layer, arguments, y: y * layer.scale)


def _add_batch_norm(network: Any) -> None:
    network.fc1.late = nn.BatchNorm1d(10)


def _gradients_kept(right: Any, trainer: Trainer, batch: Batch) -> float:
    """Those of the step before are not cleared: the trainer knows of no parameters."""
    parameters = trainer.parameters
    trainer.parameters = [] if rank_in_job() else parameters
    try:
        return right(trainer, batch)
    finally:
        trainer.parameters = parameters


def _narrowed(right: Any, reduction: GradientAllReduce) -> None:
    """A weight becomes float32 after backward."""
    if rank_in_job():
        weight = reduction.parameters[0]
        weight.data = weight.data.astype(np.float32)
    right(reduction)


def _mutant(name: str, plant: Plant, says: str) -> Mutant:
    return Mutant(f"{name} on one rank", "fully", DP, plant, (says,), refused=True)


_DIFFER = "the weights of rank 1 are not those of rank 0"

MUTANTS: tuple[Mutant, ...] = (
    _mutant("a weight replaced", _before_second_step(_halve), _DIFFER),
    _mutant("other weights loaded", _before_second_step(_load_halves), _DIFFER),
    _mutant(
        "a weight of another type",
        exchanged(GradientAllReduce, "all_reduce", _narrowed),
        "rank 1: fc1.weight is float32",
    ),
    _mutant("a new weight", _before_second_step(_scale_scores), "rank 1: fc4.scale has a gradient but is in no"),
    _mutant("a new batch norm layer", _before_second_step(_add_batch_norm), "rank 1: fc1.late is a batch norm layer"),
    _mutant(
        "gradients not cleared",
        exchanged(Trainer, "compute_gradients", _gradients_kept),
        "rank 1: gradients were changed or all-reduced",
    ),
)

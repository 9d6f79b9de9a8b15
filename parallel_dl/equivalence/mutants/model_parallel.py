"""Bugs of model parallelism: movements between split layers, shards, halo rows, what is gathered from shards."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parallel_dl.autograd import ops, primitive
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, exchanged, rank_in_job
from parallel_dl.equivalence.mutants.networks import (
    FILTERS,
    INPUT_THEN_SAMPLES,
    OUTPUT,
    PAIRS,
    ROWS,
    SAMPLES,
    SAMPLES_THEN_OUTPUT,
)
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import network as split_network
from parallel_dl.model_parallel.axis import ModelAxis
from parallel_dl.mpi import Communicator, collectives, world
from parallel_dl.optim import gradient_squares
from parallel_dl.splits import Placement, Shard, Step
from parallel_dl.splits import loss as split_losses
from parallel_dl.trainer import Trainer


# -- movements -------------------------------------------------------------------------------------------------------
def movement(name: str, wrong: Any) -> Plant:
    """A movement of `mpi.collectives` is another, where there are several ranks."""

    def either(right: Any, x: Any, comm: Communicator, *others: Any, **named: Any) -> Any:
        return wrong(right, x, comm, *others, **named) if comm.size > 1 else right(x, comm, *others, **named)

    return exchanged(collectives, name, either)


def dropped(right: Any, x: Any, comm: Communicator) -> Any:
    return x


def _self_adjoint(right: Any, x: Any, comm: Communicator) -> Any:
    return _summed_both_ways(x, comm=comm)


@primitive(collective=True)
def _summed_both_ways(x: Any, *, comm: Communicator) -> Any:
    return comm.all_reduce(x), (lambda g: comm.all_reduce(g),)


def _negated_adjoint(right: Any, x: Any, comm: Communicator) -> Any:
    return _negated_on_the_way_back(x, comm=comm)


@primitive(collective=True)
def _negated_on_the_way_back(x: Any, *, comm: Communicator) -> Any:
    return x, (lambda g: -comm.all_reduce(g),)


def _gathered_backwards(right: Any, x: Any, comm: Communicator, *others: Any, **named: Any) -> Any:
    whole = right(x, comm, *others, **named)
    axis = next(axis for axis in range(len(whole.shape)) if whole.shape[axis] != x.shape[axis])
    order = np.concatenate(np.array_split(np.arange(whole.shape[axis]), comm.size)[::-1])
    return ops.index(whole, index=(*(slice(None),) * axis, order))


# -- halo rows -------------------------------------------------------------------------------------------------------
def _no_halo(
    right: Any, comm: Communicator, array: np.ndarray, axis: int, owned: Sequence[slice], wanted: Sequence[slice]
) -> np.ndarray:
    """Rows of others are zeros."""
    result = np.array(right(comm, array, axis, owned, wanted))
    own, rows = owned[comm.rank], np.arange(wanted[comm.rank].start, wanted[comm.rank].stop)
    result[(slice(None),) * axis + ((rows < own.start) | (rows >= own.stop),)] = 0
    return result


def _nothing_returned(
    right: Any, comm: Communicator, array: np.ndarray, axis: int, owned: Sequence[slice], wanted: Sequence[slice]
) -> np.ndarray:
    """Of the gradients of wanted rows those of the owned: what others have is not added."""
    result = np.zeros_like(right(comm, array, axis, owned, wanted))
    own, given = owned[comm.rank], wanted[comm.rank]
    start, stop = max(own.start, given.start), min(own.stop, given.stop)
    before = (slice(None),) * axis
    kept = array[(*before, slice(start - given.start, stop - given.start))]
    result[(*before, slice(start - own.start, stop - own.start))] = kept
    return result


# -- shares of the samples -------------------------------------------------------------------------------------------
def _samples_from_the_first(right: Any, axis: ModelAxis) -> slice:
    """Every rank takes its share for the first: dropout draws the masks of other samples."""
    own = right(axis)
    return slice(0, own.stop - own.start)


def _targets_of_another_rank(right: Any, loss: Any, own_samples: Any) -> Any:
    """The loss of a rank's samples is taken with the targets of those at the other end of the batch."""

    def others() -> slice:
        own = own_samples()
        return slice(own.start - own.stop, None) if own.start == 0 else slice(0, own.stop - own.start)

    return right(loss, others)


def _scattered_backwards(right: Any, x: Any, comm: Communicator, axis: int, *others: Any) -> Any:
    order = np.concatenate(np.array_split(np.arange(x.shape[axis]), comm.size)[::-1])
    return right(ops.index(x, index=(*(slice(None),) * axis, order)), comm, axis, *others)


# -- layers, losses, norms -------------------------------------------------------------------------------------------
def _bias_on_every_rank(right: Any, step: Step, layer: Any, axis: ModelAxis, name: str) -> None:
    """Each adds its own to its summand: they count as often as there are ranks."""
    if step.division.finish is not None:
        add, ranks = step.division.finish.apply, axis.comm.size
        again = lambda layer, y: functools.reduce(lambda y, _: add(layer, y), range(ranks), y)  # noqa: E731
        finish = dataclasses.replace(step.division.finish, apply=again)
        step = dataclasses.replace(step, division=dataclasses.replace(step.division, finish=finish))
    right(step, layer, axis, name)


def _swapped_shards(right: Any, parameter: Any, placement: Placement, rank: int) -> Any:
    """A weight's shards in the reverse order of the ranks; biases as they should be."""
    (state,) = placement.states
    if len(parameter.whole_shape) > 1 and isinstance(state, Shard) and state.sizes is not None:
        placement = Placement(placement.mesh, (Shard(state.axis, state.sizes[::-1]),))
        rank = placement.mesh.ranks - 1 - rank
    return right(parameter, placement, rank)


def _without_partial(right: Any, sums: GradientAllReduce) -> None:
    """Gradients are summed along the data axis alone: what ranks of the model axis have of them stays a summand."""
    if not all(parameter.is_partial for parameter in sums.parameters):
        right(sums)
        return
    for parameter in sums.parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.copy()
            parameter.grad.flags.writeable = False  # as sums are


def _log_of_ranks(
    right: Any, logits: Any, *, combine: Any, total: float = 1, targets: np.ndarray, **static: Any
) -> Any:
    """The sum of exponentials counts P times: log P more."""
    value = right(logits, combine=combine, total=total, targets=targets, **static)
    return ops.add(value, np.log(combine(np.array(1.0), "sum")) * targets.size / total)


def _replicated_counted_again(right: Any, trainer: Trainer) -> float:
    """In the norm each rank counts the weights that all of them have."""
    if trainer.mesh.model.size == 1:
        return right(trainer)
    squares = gradient_squares(trainer.optimizer.parameters).sum(keepdims=True)
    return math.sqrt(trainer.mesh.model.all_reduce(squares)[0])


# -- what is left after training -------------------------------------------------------------------------------------
def _scores_out_of_place(right: Any, trainer: Trainer, *arguments: Any) -> dict[int, np.ndarray]:
    """In evaluation the slices of the scores come in another order; training has its own exchange."""
    by = int(world().size > 1)
    return {first: np.roll(scores, by, axis=-1) for first, scores in right(trainer, *arguments).items()}


def _digest_of_own_shards(right: Any, trainer: Trainer) -> str:
    """What other ranks have is left out of the digest."""
    if trainer.mesh.model.size == 1:
        return right(trainer)
    return hashlib.sha256(b"".join(parameter.data.tobytes() for parameter in trainer.parameters)).hexdigest()


def _loaded_by_one_rank(right: Any, trainer: Trainer, state: Mapping[str, Any]) -> None:
    """The last rank keeps its weights when others are loaded."""
    before = [parameter.data.copy() for parameter in trainer.parameters]
    right(trainer, state)
    if rank_in_job():
        for parameter, own in zip(trainer.parameters, before):
            parameter.data[...] = own


def _mutant(name: str, network: str, layout: Layout, plant: Plant, says: str) -> Mutant:
    return Mutant(name, network, layout, plant, (says,))


MUTANTS: tuple[Mutant, ...] = (
    _mutant("all-reduce dropped forward", "fully", PAIRS, movement("all_reduce", dropped), "missing reduction"),
    _mutant(
        "all-reduce dropped backward",
        "fully",
        OUTPUT,
        movement("replicate", dropped),
        "missing reduction in backward",
    ),
    _mutant("self-adjoint all-reduce", "fully", PAIRS, movement("all_reduce", _self_adjoint), "counted 2 times"),
    _mutant("sign of an adjoint", "fully", OUTPUT, movement("replicate", _negated_adjoint), "wrong sign"),
    _mutant(
        "bias on every rank",
        "fully",
        PAIRS,
        exchanged(split_network, "carry_out", _bias_on_every_rank),
        "bias added 2 times",
    ),
    _mutant("shards swapped", "fully", OUTPUT, exchanged(split_network, "cut", _swapped_shards), "shard out of place"),
    _mutant("gathered in the wrong order", "fully", OUTPUT, movement("unshard", _gathered_backwards), "out of place"),
    _mutant(
        "channels gathered in the wrong order",
        "images",
        FILTERS,
        movement("all_gather", _gathered_backwards),
        "out of place",
    ),
    _mutant(
        "halo row missing", "images", ROWS, exchanged(Communicator, "exchange_slices", _no_halo), "halo rows missing"
    ),
    _mutant(
        "halo gradients not returned",
        "images",
        ROWS,
        exchanged(Communicator, "return_slices", _nothing_returned),
        "halo rows",
    ),
    _mutant(
        "tiles' weight gradients not summed",
        "images",
        ROWS,
        exchanged(GradientAllReduce, "all_reduce", _without_partial),
        "missing reduction",
    ),
    _mutant(
        "gradients of samples not summed over the ranks that share a layer",
        "fully",
        SAMPLES_THEN_OUTPUT,
        exchanged(GradientAllReduce, "all_reduce", _without_partial),
        "missing reduction",
    ),
    _mutant(
        "dropout masks of other samples",
        "fully",
        SAMPLES_THEN_OUTPUT,
        exchanged(ModelAxis, "own_samples", _samples_from_the_first),
        "mask",
    ),
    _mutant(
        "targets of another rank's samples",
        "fully",
        SAMPLES,
        exchanged(split_network, "of_samples", _targets_of_another_rank),
        "targets",
    ),
    _mutant(
        "samples scattered to the wrong ranks",
        "fully",
        INPUT_THEN_SAMPLES,
        movement("reduce_scatter", _scattered_backwards),
        "out of place",
    ),
    _mutant(
        "log P in a split cross-entropy",
        "fully",
        OUTPUT,
        exchanged(split_losses, "split_cross_entropy", _log_of_ranks),
        "log 2",
    ),
    _mutant(
        "replicated weights counted P times in the norm",
        "clipped",
        PAIRS,
        exchanged(Trainer, "gradient_norm", _replicated_counted_again),
        "norm",
    ),
    _mutant(
        "scores gathered in another order",
        "fully",
        OUTPUT,
        exchanged(Trainer, "own_outputs", _scores_out_of_place),
        "output in evaluation mode",
    ),
    _mutant(
        "digest of a rank's own pieces",
        "fully",
        PAIRS,
        exchanged(Trainer, "weights_sha256", _digest_of_own_shards),
        "not the digest",
    ),
    _mutant(
        "weights not loaded by one rank",
        "fully",
        PAIRS,
        exchanged(Trainer, "load_state_dict", _loaded_by_one_rank),
        "load_state_dict",
    ),
)

"""Bugs of model parallelism: sums between split layers, shards, halo rows, what is gathered from pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from parallel_dl.autograd import ops, primitive
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, replaced
from parallel_dl.equivalence.mutants.networks import FILTERS, OUTPUT, PAIRS, ROWS
from parallel_dl.model_parallel import ModelParallel
from parallel_dl.model_parallel import network as split_network
from parallel_dl.mpi import Communicator, collectives
from parallel_dl.splits import Finish, Placement, Shard
from parallel_dl.splits import loss as split_losses
from parallel_dl.trainer import Trainer


# -- moves -----------------------------------------------------------------------------------------------------------
def _move(name: str, change: Callable[[Any, Any, Any], Any]) -> Plant:
    """Makes moves of this name in another way: `change` gets x, the communicator and the right function."""

    def make(before: Any) -> Any:
        def wrong(x: Any, comm: Communicator, *arguments: Any) -> Any:
            return (
                change(x, comm, lambda: before(x, comm, *arguments)) if comm.size > 1 else before(x, comm, *arguments)
            )

        return wrong

    return lambda stack: replaced(stack, collectives, name, make)


@primitive(collective=True)
def _self_adjoint(x: Any, *, comm: Communicator) -> Any:
    return comm.all_reduce(x), (lambda g: comm.all_reduce(g),)


@primitive(collective=True)
def _negated_adjoint(x: Any, *, comm: Communicator) -> Any:
    return x, (lambda g: -comm.all_reduce(g),)


def _gathered_backwards(x: Any, comm: Communicator, right: Callable[[], Any]) -> Any:
    whole = right()
    axis = next(axis for axis in range(len(whole.shape)) if whole.shape[axis] != x.shape[axis])
    order = np.concatenate(np.array_split(np.arange(whole.shape[axis]), comm.size)[::-1])
    return ops.index(whole, index=(*(slice(None),) * axis, order))


# -- halo rows -------------------------------------------------------------------------------------------------------
def _halo(name: str, keep: Callable[[np.ndarray, int, slice, slice], np.ndarray]) -> Plant:
    """exchange_slices or return_slices, whose result is changed: `keep` gets it, the axis, what is owned and wanted."""

    def make(before: Any) -> Any:
        def wrong(
            comm: Communicator, array: np.ndarray, axis: int, owned: Sequence[slice], wanted: Sequence[slice]
        ) -> np.ndarray:
            result = before(comm, array, axis, owned, wanted)
            return (
                keep(array, axis, owned[comm.rank], wanted[comm.rank])
                if name == "return_slices"
                else _without(result, axis, owned[comm.rank], wanted[comm.rank])
            )

        return wrong

    return lambda stack: replaced(stack, Communicator, name, make)


def _without(result: np.ndarray, axis: int, owned: slice, wanted: slice) -> np.ndarray:
    """Rows of others are zeros."""
    result = np.array(result)
    rows = np.arange(wanted.start, wanted.stop)
    result[(slice(None),) * axis + ((rows < owned.start) | (rows >= owned.stop),)] = 0
    return result


def _only_own(array: np.ndarray, axis: int, owned: slice, wanted: slice) -> np.ndarray:
    """Of the gradients of wanted rows those of the owned: what others have is not added."""
    shape = list(array.shape)
    shape[axis] = owned.stop - owned.start
    result = np.zeros(shape, array.dtype)
    start, stop = max(owned.start, wanted.start), min(owned.stop, wanted.stop)
    before = (slice(None),) * axis
    result[(*before, slice(start - owned.start, stop - owned.start))] = array[
        (*before, slice(start - wanted.start, stop - wanted.start))
    ]
    return result


# -- layers and losses -----------------------------------------------------------------------------------------------
def _bias_on_every_rank(stack: ExitStack) -> None:
    """Each adds its own to its summand: they count as often as there are ranks."""

    def make(before: Any) -> Any:
        def wrong(finish: Finish, output: Placement) -> dict[str, Placement]:
            bias, ranks = finish.apply, output.mesh.ranks
            object.__setattr__(finish, "apply", lambda layer, y: _times(ranks, bias, layer, y))
            return before(finish, output)

        return wrong

    replaced(stack, Finish, "weights", make)


def _times(ranks: int, add: Callable[[Any, Any], Any], layer: Any, y: Any) -> Any:
    for _ in range(ranks):
        y = add(layer, y)
    return y


def _swapped_shards(stack: ExitStack) -> None:
    """A weight's pieces in the reverse order of the ranks; biases as they should be."""

    def make(before: Any) -> Any:
        def wrong(parameter: Any, placement: Placement, rank: int) -> Any:
            (state,) = placement.states
            if len(parameter.whole_shape) > 1 and isinstance(state, Shard) and state.sizes is not None:
                mirrored = Placement(placement.mesh, (Shard(state.axis, state.sizes[::-1]),))
                return before(parameter, mirrored, placement.mesh.ranks - 1 - rank)
            return before(parameter, placement, rank)

        return wrong

    replaced(stack, split_network, "cut", make)


def _tile_gradients_not_summed(stack: ExitStack) -> None:
    """Those of all weights are summed along the data axis alone."""
    replaced(stack, GradientAllReduce, "all_reduce", lambda before: lambda sums: _without_partial(before, sums))


def _without_partial(right: Callable[[Any], None], sums: GradientAllReduce) -> None:
    if sums.networks:  # not the sums of partial gradients
        right(sums)
        return
    for parameter in sums.parameters:
        if parameter.grad is not None:
            parameter.grad.flags.writeable = False


def _log_of_ranks(stack: ExitStack) -> None:
    """The sum of exponentials counts P times: log P more."""

    def make(before: Any) -> Any:
        def wrong(logits: Any, *, combine: Any, total: float = 1, targets: np.ndarray, **static: Any) -> Any:
            value = before(logits, combine=combine, total=total, targets=targets, **static)
            return ops.add(value, np.log(combine(np.array(1.0), "sum")) * targets.size / total)

        return wrong

    replaced(stack, split_losses, "split_cross_entropy", make)


def _replicated_counted_again(stack: ExitStack) -> None:
    """In norms each rank counts the weights that all of them have."""
    replaced(stack, Trainer, "_counted_once", lambda before: lambda trainer, squares, parameters: squares)


# -- what is left after training -------------------------------------------------------------------------------------
def _scores_out_of_place(stack: ExitStack) -> None:
    """In evaluation the slices of the scores come in another order; training has its own exchange."""
    replaced(
        stack,
        ModelParallel,
        "whole_output",
        lambda before: lambda parallel, output: np.roll(before(parallel, output), 1, axis=-1),
    )


def _digest_of_own_pieces(stack: ExitStack) -> None:
    """Rows that other ranks have are left out of the digest."""

    def make(before: Any) -> Any:
        def wrong(parallel: ModelParallel, name: str, array: np.ndarray) -> Iterator[np.ndarray]:
            for _ in before(parallel, name, array):
                pass
            yield array

        return wrong

    replaced(stack, ModelParallel, "_rows", make)


def _loaded_by_one_rank(stack: ExitStack) -> None:
    """The last rank keeps its weights when others are loaded."""

    def make(before: Any) -> Any:
        def wrong(parallel: ModelParallel, state: Any) -> None:
            if parallel.comm.rank < parallel.comm.size - 1 or parallel.comm.size == 1:
                before(parallel, state)

        return wrong

    replaced(stack, ModelParallel, "load_state_dict", make)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "all-reduce dropped forward",
        "fully",
        PAIRS,
        _move("all_reduce", lambda x, comm, right: x),
        ("missing reduction",),
    ),
    Mutant(
        "all-reduce dropped backward",
        "fully",
        OUTPUT,
        _move("replicate", lambda x, comm, right: x),
        ("missing reduction in backward",),
    ),
    Mutant(
        "self-adjoint all-reduce",
        "fully",
        PAIRS,
        _move("all_reduce", lambda x, comm, right: _self_adjoint(x, comm=comm)),
        ("counted 2 times",),
    ),
    Mutant(
        "sign of an adjoint",
        "fully",
        OUTPUT,
        _move("replicate", lambda x, comm, right: _negated_adjoint(x, comm=comm)),
        ("wrong sign",),
    ),
    Mutant("bias on every rank", "fully", PAIRS, _bias_on_every_rank, ("bias added 2 times",)),
    Mutant("shards swapped", "fully", OUTPUT, _swapped_shards, ("shard out of place",)),
    Mutant("gathered in the wrong order", "fully", OUTPUT, _move("unshard", _gathered_backwards), ("out of place",)),
    Mutant(
        "channels gathered in the wrong order", "images", FILTERS, _move("all_gather", _gathered_backwards), ("place",)
    ),
    Mutant("halo row missing", "images", ROWS, _halo("exchange_slices", _only_own), ("halo rows missing",)),
    Mutant("halo gradients not returned", "images", ROWS, _halo("return_slices", _only_own), ("halo rows",)),
    Mutant("tiles' weight gradients not summed", "images", ROWS, _tile_gradients_not_summed, ("missing reduction",)),
    Mutant("log P in a split cross-entropy", "fully", OUTPUT, _log_of_ranks, ("log 2",)),
    Mutant("replicated weights counted P times in the norm", "clipped", PAIRS, _replicated_counted_again, ("norm",)),
    Mutant("scores gathered in another order", "fully", OUTPUT, _scores_out_of_place, ("output in evaluation mode",)),
    Mutant("digest of a rank's own pieces", "fully", PAIRS, _digest_of_own_pieces, ("not the digest",)),
    Mutant("weights not loaded by one rank", "fully", PAIRS, _loaded_by_one_rank, ("load_state_dict",)),
)

"""Bugs of model parallelism: sums between split layers, shards, halo rows, what is gathered from pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from parallel_dl.autograd import ops, primitive
from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, replaced
from parallel_dl.equivalence.mutants.networks import FILTERS, OUTPUT, PAIRS, ROWS
from parallel_dl.model_parallel import ModelParallel
from parallel_dl.model_parallel import axis as model_axis
from parallel_dl.model_parallel import losses as split_losses
from parallel_dl.model_parallel import network as split_network
from parallel_dl.model_parallel.linear import RowParallelLinear
from parallel_dl.mpi import Communicator, collectives
from parallel_dl.splits.moves import AllReduce, Gather, Replicate, Unshard
from parallel_dl.trainer import Trainer


# -- moves -----------------------------------------------------------------------------------------------------------
def _moves(kind: type, change: Callable[[Any, Any, Any, Any], Any]) -> Plant:
    """Makes moves of a kind in another way: `change` gets the move, x, the communicator and the right function."""

    def make(before: Any) -> Any:
        def wrong(move: Any, x: Any, comm: Communicator, *arguments: Any) -> Any:
            if isinstance(move, kind) and comm.size > 1:
                return change(move, x, comm, lambda: before(move, x, comm, *arguments))
            return before(move, x, comm, *arguments)

        return wrong

    return lambda stack: replaced(stack, model_axis, "_collective", make)


@primitive(collective=True)
def _self_adjoint(x: Any, *, comm: Communicator) -> Any:
    return comm.all_reduce(x), (lambda g: comm.all_reduce(g),)


@primitive(collective=True)
def _negated_adjoint(x: Any, *, comm: Communicator) -> Any:
    return x, (lambda g: -comm.all_reduce(g),)


def _gathered_backwards(move: Any, x: Any, comm: Communicator, right: Callable[[], Any]) -> Any:
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
    def make(before: Any) -> Any:
        def wrong(layer: RowParallelLinear, x: Any) -> Any:
            y = ops.linear(x, layer.weight, layer.bias)
            return model_axis.summed(y, layer.comm.labelled("wrong"))

        return wrong

    replaced(stack, RowParallelLinear, "forward", make)


def _swapped_shards(stack: ExitStack) -> None:
    """A weight's pieces in the reverse order of the ranks; biases as they should be."""

    def make(before: Any) -> Any:
        def wrong(parameter: Any, piece: Any) -> Any:
            at = len(piece) - 1
            length, own = parameter.whole_shape[at], piece[at]
            if len(parameter.whole_shape) > 1 and own.stop - own.start < length:
                piece = (*piece[:at], slice(length - own.stop, length - own.start))
            return before(parameter, piece)

        return wrong

    replaced(stack, split_network, "cut", make)


def _tile_gradients_not_summed(stack: ExitStack) -> None:
    replaced(stack, collectives, "replicate", lambda before: lambda x, comm: x)


def _log_of_ranks(stack: ExitStack) -> None:
    """The sum of exponentials counts P times: log P more."""

    def make(before: Any) -> Any:
        def wrong(logits: Any, *, comm: Communicator, total: float = 1, targets: np.ndarray, **static: Any) -> Any:
            value = before(logits, comm=comm, total=total, targets=targets, **static)
            return ops.add(value, np.log(comm.size) * targets.size / total)

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
        _moves(AllReduce, lambda move, x, comm, right: x),
        ("missing reduction",),
    ),
    Mutant(
        "all-reduce dropped backward",
        "fully",
        OUTPUT,
        _moves(Replicate, lambda move, x, comm, right: x),
        ("missing reduction in backward",),
    ),
    Mutant(
        "self-adjoint all-reduce",
        "fully",
        PAIRS,
        _moves(AllReduce, lambda move, x, comm, right: _self_adjoint(x, comm=comm)),
        ("counted 2 times",),
    ),
    Mutant(
        "sign of an adjoint",
        "fully",
        OUTPUT,
        _moves(Replicate, lambda move, x, comm, right: _negated_adjoint(x, comm=comm)),
        ("wrong sign",),
    ),
    Mutant("bias on every rank", "fully", PAIRS, _bias_on_every_rank, ("bias added 2 times",)),
    Mutant("shards swapped", "fully", OUTPUT, _swapped_shards, ("shard out of place",)),
    Mutant("gathered in the wrong order", "fully", OUTPUT, _moves(Unshard, _gathered_backwards), ("out of place",)),
    Mutant("channels gathered in the wrong order", "images", FILTERS, _moves(Gather, _gathered_backwards), ("place",)),
    Mutant("halo row missing", "images", ROWS, _halo("exchange_slices", _only_own), ("halo rows missing",)),
    Mutant("halo gradients not returned", "images", ROWS, _halo("return_slices", _only_own), ("halo rows",)),
    Mutant("tiles' weight gradients not summed", "images", ROWS, _tile_gradients_not_summed, ("missing reduction",)),
    Mutant("log P in a split cross-entropy", "fully", OUTPUT, _log_of_ranks, ("log 2",)),
    Mutant("replicated weights counted P times in the norm", "clipped", PAIRS, _replicated_counted_again, ("norm",)),
    Mutant("scores gathered in another order", "fully", OUTPUT, _scores_out_of_place, ("output in evaluation mode",)),
    Mutant("digest of a rank's own pieces", "fully", PAIRS, _digest_of_own_pieces, ("not the digest",)),
    Mutant("weights not loaded by one rank", "fully", PAIRS, _loaded_by_one_rank, ("load_state_dict",)),
)

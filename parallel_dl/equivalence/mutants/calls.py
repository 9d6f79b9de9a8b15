"""Bugs in calls: one rank leaves one out, or makes another than the rest. Checked mode names the ranks and the calls.

Without it such a program waits for ever, or computes something else without a word. With it every rank is refused, so
nothing hangs: here in two ranks that go wrong at the same call, or receive each other's wrong message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from parallel_dl.data_parallel.gradients import GradientAllReduce
from parallel_dl.equivalence.mutants.mutant import Mutant, Plant, rank_in_job, replaced
from parallel_dl.equivalence.mutants.networks import DP, OUTPUT, PAIRS, PIPE, ROWS
from parallel_dl.mpi import Communicator, Pending
from parallel_dl.trainer import Trainer

Call = Callable[..., Any]


def _on_one_rank(name: str, change: Callable[..., Any]) -> Plant:
    """The last rank's first call of this name is another: `change` gets the right one, and what it is given."""

    def make(before: Any) -> Any:
        made: list[str] = []

        def wrong(comm: Communicator, *arguments: Any, **named: Any) -> Any:
            if comm.size == 1 or not comm.checked or rank_in_job() == 0 or made:
                return before(comm, *arguments, **named)
            made.append(name)
            return change(functools.partial(before, comm), *arguments, **named)

        return wrong

    return lambda stack: replaced(stack, Communicator, name, make)


def _left_out(right: Call, array: np.ndarray, *_: Any, **__: Any) -> np.ndarray:
    return array


def _largest(right: Call, array: np.ndarray, *_: Any, **__: Any) -> Any:
    return right(array, "max")


def _one_value_less(right: Call, array: np.ndarray, *_: Any, **__: Any) -> Any:
    return right(array[:-1])


def _in_float32(right: Call, array: np.ndarray, *others: Any) -> Any:
    return right(array.astype(np.float32), *others)


def _from_another_root(right: Call, array: Any, root: int, *others: Any) -> Any:
    return right(array, 1 - root, *others)


def _shorter_halo(right: Call, array: np.ndarray, axis: int, owned: Any, wanted: Any) -> Any:
    return right(array, axis, owned, [*wanted[:-1], slice(wanted[-1].start + 1, wanted[-1].stop)])


def _instead(other: str) -> Callable[..., Any]:
    """Another collective."""

    def change(right: Any, array: np.ndarray, *_: Any, **__: Any) -> Any:
        return getattr(right.args[0], other)(array)

    return change


def _loss_before_gradients(stack: ExitStack) -> None:
    """The last rank sums the loss first, then the gradients: the same two calls in another order."""
    sums: list[np.ndarray] = []

    def early(before: Any) -> Any:
        def wrong(reduction: GradientAllReduce) -> None:
            if rank_in_job():
                sums.append(reduction.comm.all_reduce(np.zeros(1)))
            before(reduction)

        return wrong

    replaced(stack, GradientAllReduce, "all_reduce", early)
    replaced(
        stack, Trainer, "sum_losses", lambda before: lambda trainer, loss: sums.pop() if sums else before(trainer, loss)
    )


def _sent_as(change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """What is sent from rank to rank, and what the other side does not expect."""

    def make(before: Any) -> Any:
        def wrong(comm: Communicator, array: np.ndarray, destination: int, tag: int = 0) -> Pending:
            return before(comm, change(array) if comm.checked else array, destination, tag)

        return wrong

    return lambda stack: replaced(stack, Communicator, "isend", make)


def _twice(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array])


_ALL_REDUCE, _FLOATS, _SENT = "but rank 1 calls all_reduce #", "rank 1 calls all_gather #", "from rank 1, "

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "one rank leaves out an all-reduce", "fully", DP, _on_one_rank("all_reduce", _left_out), (_ALL_REDUCE,), True
    ),
    Mutant("two calls in another order on one rank", "fully", DP, _loss_before_gradients, (_ALL_REDUCE,), True),
    Mutant("another operation on one rank", "fully", DP, _on_one_rank("all_reduce", _largest), ("(max, ",), True),
    Mutant(
        "another shape on one rank", "fully", PAIRS, _on_one_rank("all_reduce", _one_value_less), (_ALL_REDUCE,), True
    ),
    Mutant("another type on one rank", "fully", OUTPUT, _on_one_rank("all_gather", _in_float32), (_FLOATS,), True),
    Mutant(
        "another collective on one rank",
        "fully",
        PAIRS,
        _on_one_rank("all_reduce", _instead("reduce_scatter")),
        ("rank 1 calls reduce_scatter #",),
        True,
    ),
    Mutant(
        "another root on one rank",
        "fully",
        PIPE,
        _on_one_rank("broadcast", _from_another_root),
        ("but rank 1 calls broadcast #",),
        True,
    ),
    Mutant(
        "another halo on one rank",
        "images",
        ROWS,
        _on_one_rank("exchange_slices", _shorter_halo),
        ("but rank 1 calls exchange_slices #",),
        True,
    ),
    Mutant("halo rows sent in another type", "images", ROWS, _sent_as(lambda a: a.astype(np.float32)), (_SENT,), True),
    Mutant("halo rows sent twice over", "images", ROWS, _sent_as(_twice), (_SENT,), True),
)

"""Compares the differentiable movements with their definitions on whole arrays, and runs the adjoint test.

It also compares what a program may split by hand, two layers and the losses, with the serial versions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl import nn, partition
from parallel_dl.autograd import Tensor, no_grad
from parallel_dl.equivalence.adjoint import assert_adjoint
from parallel_dl.equivalence.checks.calls import lopsided, wrong_call
from parallel_dl.model_parallel import ColumnParallelLinear, RowParallelLinear, split_loss
from parallel_dl.mpi import Communicator, collectives
from parallel_dl.splits.loss import is_summand

Arrays = list[np.ndarray]
LENGTH = 7  # of the axis that is divided: uneven on any number of ranks, and empty on some of 8


@dataclass(frozen=True)
class Movement:
    """`run` on this rank's tensor, and what it gives: from all ranks' inputs."""

    name: str
    x: str
    y: str
    """kinds, as of `assert_adjoint`"""
    run: Callable[[Any], Any]
    expected: Callable[[Arrays], np.ndarray]
    shape: tuple[int, ...]
    """of this rank's input"""


def movements(comm: Communicator) -> Iterator[Movement]:
    """All of them, with slices along the first and the last axis, even ones and ones of given lengths."""
    root, whole, c = comm.size - 1, (LENGTH, 3), collectives
    yield Movement("replicate", "replicated", "varying", lambda x: c.replicate(x, comm), lambda a: a[0], whole)
    yield Movement("all_reduce", "varying", "replicated", lambda x: c.all_reduce(x, comm), _sum, whole)
    yield Movement("broadcast", "rooted", "varying", lambda x: c.broadcast(x, comm, root), lambda a: a[root], whole)
    yield Movement("reduce", "varying", "rooted", lambda x: c.reduce(x, comm, root), _sum, whole)
    for sizes in (None, lopsided(LENGTH, comm.size)):
        yield from _sliced(comm, 0, sizes)
        yield from _sliced(comm, -1, sizes)
    for offset in (1, -1, 2):
        yield from (_shift(comm, offset, cyclic) for cyclic in (True, False))
    yield from (_halo(comm, before, after) for before, after in ((1, 2), (0, LENGTH)))
    owned = [partition.share(LENGTH, comm.size, number) for number in range(comm.size)]
    wanted = [slice(0, min(LENGTH, number + 2)) for number in range(comm.size)]
    yield Movement(
        "exchange_slices",
        "varying",
        "varying",
        lambda x: c.exchange_slices(x, comm, 0, owned, wanted),
        lambda a: np.concatenate(a)[wanted[comm.rank]],
        _shape(owned[comm.rank]),
    )


def _sliced(comm: Communicator, axis: int, given: list[int] | None) -> Iterator[Movement]:
    """Between the whole array and slices along an axis, of `given` lengths by rank, or even ones."""
    c, root = collectives, comm.size - 1
    sizes = partition.shares(LENGTH, comm.size) if given is None else given
    own = slice(sum(sizes[: comm.rank]), sum(sizes[: comm.rank + 1]))
    whole, part = (_shape(rows, axis) for rows in (slice(0, LENGTH), own))
    index = (own,) if axis == 0 else (..., own)
    concatenated = lambda arrays: np.concatenate(arrays, axis)  # noqa: E731
    across = partition.share(3, comm.size, comm.rank)
    text = f" along axis {axis}{'' if given is None else ', sizes given'}"
    for name, x, y, run, expected, shape in (
        ("shard", "replicated", "varying", lambda x: c.shard(x, comm, axis, given), lambda a: a[0][index], whole),
        ("unshard", "varying", "replicated", lambda x: c.unshard(x, comm, axis, given), concatenated, part),
        ("all_gather", "varying", "varying", lambda x: c.all_gather(x, comm, axis, given), concatenated, part),
        (
            "reduce_scatter",
            "varying",
            "varying",
            lambda x: c.reduce_scatter(x, comm, axis, given),
            lambda a: _sum(a)[index],
            whole,
        ),
        (
            "scatter",
            "rooted",
            "varying",
            lambda x: c.scatter(x, comm, root, axis, given),
            lambda a: a[root][index],
            whole,
        ),
        ("gather", "varying", "rooted", lambda x: c.gather(x, comm, root, axis, given), concatenated, part),
        (
            "all_to_all",
            "varying",
            "varying",
            lambda x: c.all_to_all(x, comm, -1 - axis, axis, concat_sizes=given),
            lambda a: np.take(concatenated(a), range(across.start, across.stop), -1 - axis),
            part,
        ),
    ):
        yield Movement(name + text, x, y, run, expected, shape)


def _shape(rows: slice, axis: int = 0) -> tuple[int, ...]:
    """Of an array with these rows along an axis, the first or the last, and 3 along the other."""
    length = rows.stop - rows.start
    return (length, 3) if axis == 0 else (3, length)


def _sum(arrays: Arrays) -> np.ndarray:
    return np.sum(arrays, axis=0)


def _shift(comm: Communicator, offset: int, cyclic: bool) -> Movement:
    source = comm.rank - offset

    def expected(arrays: Arrays) -> np.ndarray:
        return arrays[source % comm.size] if cyclic or 0 <= source < comm.size else np.zeros_like(arrays[0])

    name = f"shift by {offset}{'' if cyclic else ', not cyclic'}"
    run = lambda x: collectives.shift(x, comm, offset, cyclic)  # noqa: E731
    return Movement(name, "varying", "varying", run, expected, (LENGTH, 3))


def _halo(comm: Communicator, before: int, after: int) -> Movement:
    own = partition.share(LENGTH, comm.size, comm.rank)
    seen = slice(max(0, own.start - before), min(LENGTH, own.stop + after))
    return Movement(
        f"exchange_halo {before}, {after}",
        "varying",
        "varying",
        lambda x: collectives.exchange_halo(x, comm, 0, before, after),
        lambda arrays: np.concatenate(arrays)[seen],
        _shape(own),
    )


def wrong_movement(comm: Communicator) -> str | None:
    """What is wrong with the first wrong one, the same on every rank of `comm`, on which all are tried together."""
    for one in movements(comm):
        random = np.random.default_rng([7, 0 if one.x == "replicated" else comm.rank])
        x = random.standard_normal(one.shape)
        absent = one.x == "rooted" and comm.rank != comm.size - 1
        with no_grad():
            y = one.run(None if absent else Tensor(x))
        expected = one.expected(comm.all_gather_object(x))
        said = None
        if (one.y != "rooted" or comm.rank == comm.size - 1) and not _near(y.data, expected):
            said = f"{one.name}: gives a wrong array on rank {comm.rank}"
        told = [of_rank for of_rank in comm.all_gather_object(said) if of_rank is not None]
        if told:
            return told[0]
        try:
            assert_adjoint(one.run, one.shape, comm, one.x, one.y, comm.size - 1)
        except AssertionError as error:  # on every rank
            return f"{one.name}: {str(error).splitlines()[0]}"
    return wrong_call(comm) or wrong_pair(comm) or wrong_loss(comm)


def wrong_pair(comm: Communicator) -> str | None:
    """The same of fully connected layers, one after the other, that are made for the ranks of `comm`."""
    random = np.random.default_rng(11)
    x, g = random.standard_normal((2, 4, LENGTH)), random.standard_normal((2, 4, 3))  # features are last
    serial = nn.Sequential(fc1=nn.Linear(LENGTH, 5), fc2=nn.Linear(5, 3)).initialize(0, "float64")
    leaf = Tensor(x, requires_grad=True)
    expected = serial(leaf)
    expected.backward(g)
    said = None
    for between in ("split", "whole"):
        first = ColumnParallelLinear(LENGTH, 5, comm, output=between)
        second = RowParallelLinear(5, 3, comm, input=between)
        own = Tensor(x, requires_grad=True)
        found = nn.Sequential(fc1=first, fc2=second).initialize(0, "float64")(own)
        found.backward(g)
        assert own.grad is not None
        if not _near(found.data, expected.data):
            said = said or f"RowParallelLinear, of {between} input: gives another array than Linear on rank {comm.rank}"
        if not _near(own.grad, np.asarray(leaf.grad)):
            said = said or f"ColumnParallelLinear, with {between} output: returns a different gradient than Linear"
    return next((of_rank for of_rank in comm.all_gather_object(said) if of_rank is not None), None)


def wrong_loss(comm: Communicator) -> str | None:
    """The same of losses of scores that are split by class: with a total, and with the mean, which is the default."""
    random = np.random.default_rng(13)
    scores, classes = random.standard_normal((6, LENGTH)), random.integers(0, LENGTH, 6)
    targets = {nn.cross_entropy: classes, nn.logistic_loss: classes, nn.mse: random.standard_normal((6, LENGTH))}
    said = None
    for sizes in (partition.shares(LENGTH, comm.size), lopsided(LENGTH, comm.size)):
        own = slice(sum(sizes[: comm.rank]), sum(sizes[: comm.rank + 1]))
        for loss, total in itertools.product(targets, (None, 9)):
            whole, part = Tensor(scores, requires_grad=True), Tensor(scores[:, own], requires_grad=True)
            expected, found = (
                loss(whole, targets[loss], total),
                split_loss(loss, tuple(sizes), comm)(part, targets[loss], total),
            )
            expected.backward()
            found.backward()
            value = np.asarray(found.data)
            value = comm.all_reduce(value) if is_summand(loss) else value
            assert whole.grad is not None
            right = _near(value, expected.data) and _near(np.asarray(part.grad), whole.grad[:, own])
            if not right and said is None:
                with_total = "the mean" if total is None else "a total"
                said = (
                    f"{loss.__name__} of split scores, with {with_total}: is not that of whole ones on rank {comm.rank}"
                )
    return next((of_rank for of_rank in comm.all_gather_object(said) if of_rank is not None), None)


def _near(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-12, atol=1e-12)

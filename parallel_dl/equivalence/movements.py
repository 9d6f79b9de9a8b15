"""The differentiable movements themselves: what each gives, by its definition on whole arrays, and the adjoint test.

And the two layers that a program may divide by hand, compared with the serial ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl import nn, partition
from parallel_dl.autograd import Tensor, no_grad
from parallel_dl.equivalence.adjoint import assert_adjoint
from parallel_dl.model_parallel import ColumnParallelLinear, RowParallelLinear
from parallel_dl.mpi import Communicator, collectives

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
    is_whole: bool
    """whether the input has all of the axis, or this rank's slice"""


def movements(comm: Communicator) -> Iterator[Movement]:
    """All that there are, for arrays (axis that is divided, 3)."""
    size, rank, root, c = comm.size, comm.rank, comm.size - 1, collectives
    shares = [partition.share(LENGTH, size, number) for number in range(size)]
    own = shares[rank]
    yield Movement("replicate", "replicated", "varying", lambda x: c.replicate(x, comm), lambda a: a[0], True)
    yield Movement("all_reduce", "varying", "replicated", lambda x: c.all_reduce(x, comm), _sum, True)
    yield Movement("shard", "replicated", "varying", lambda x: c.shard(x, comm, 0), lambda a: a[0][own], True)
    yield Movement("unshard", "varying", "replicated", lambda x: c.unshard(x, comm, 0), np.concatenate, False)
    yield Movement("all_gather", "varying", "varying", lambda x: c.all_gather(x, comm, 0), np.concatenate, False)
    yield Movement(
        "reduce_scatter", "varying", "varying", lambda x: c.reduce_scatter(x, comm, 0), lambda a: _sum(a)[own], True
    )
    yield Movement(
        "all_to_all",
        "varying",
        "varying",
        lambda x: c.all_to_all(x, comm, 1, 0),
        lambda a: np.concatenate(a)[:, partition.share(3, size, rank)],
        False,
    )
    yield Movement("broadcast", "rooted", "varying", lambda x: c.broadcast(x, comm, root), lambda a: a[root], True)
    yield Movement("reduce", "varying", "rooted", lambda x: c.reduce(x, comm, root), _sum, True)
    yield Movement("scatter", "rooted", "varying", lambda x: c.scatter(x, comm, root, 0), lambda a: a[root][own], True)
    yield Movement("gather", "varying", "rooted", lambda x: c.gather(x, comm, root, 0), np.concatenate, False)
    yield from (_shift(comm, offset, cyclic) for offset, cyclic in ((1, True), (-1, False), (2, True)))
    yield from (_halo(comm, own, before, after) for before, after in ((1, 2), (0, LENGTH)))
    wanted = [slice(0, min(LENGTH, number + 2)) for number in range(size)]
    yield Movement(
        "exchange_slices",
        "varying",
        "varying",
        lambda x: c.exchange_slices(x, comm, 0, shares, wanted),
        lambda a: np.concatenate(a)[wanted[rank]],
        False,
    )


def _sum(arrays: Arrays) -> np.ndarray:
    return np.sum(arrays, axis=0)


def _shift(comm: Communicator, offset: int, cyclic: bool) -> Movement:
    source = comm.rank - offset

    def expected(arrays: Arrays) -> np.ndarray:
        return arrays[source % comm.size] if cyclic or 0 <= source < comm.size else np.zeros_like(arrays[0])

    name = f"shift by {offset}{'' if cyclic else ', not cyclic'}"
    return Movement(name, "varying", "varying", lambda x: collectives.shift(x, comm, offset, cyclic), expected, True)


def _halo(comm: Communicator, own: slice, before: int, after: int) -> Movement:
    seen = slice(max(0, own.start - before), min(LENGTH, own.stop + after))
    return Movement(
        f"exchange_halo {before}, {after}",
        "varying",
        "varying",
        lambda x: collectives.exchange_halo(x, comm, 0, before, after),
        lambda arrays: np.concatenate(arrays)[seen],
        False,
    )


def wrong_movement(comm: Communicator) -> str | None:
    """What is wrong with the first wrong one, the same on every rank of `comm`, on which all are tried together."""
    share = partition.share(LENGTH, comm.size, comm.rank)
    for one in movements(comm):
        shape = (LENGTH if one.is_whole else share.stop - share.start, 3)
        random = np.random.default_rng([7, 0 if one.x == "replicated" else comm.rank])
        x = random.standard_normal(shape)
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
            assert_adjoint(one.run, shape, comm, one.x, one.y, comm.size - 1)
        except AssertionError as error:  # on every rank
            return f"{one.name}: {str(error).splitlines()[0]}"
    return wrong_pair(comm)


def wrong_pair(comm: Communicator) -> str | None:
    """The same of fully connected layers, one after the other, that are made for the ranks of `comm`."""
    random = np.random.default_rng(11)
    x, g = random.standard_normal((2, 4, LENGTH)), random.standard_normal((2, 4, 3))  # features are the last of axes
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


def _near(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-12, atol=1e-12)

"""Every move of the table, made by the ranks: its value, <F x, y> == <x, F* y>, and what the ledger counts."""

import itertools

import numpy as np
import pytest

from parallel_dl.autograd import Tensor
from parallel_dl.mesh import (
    Invariant,
    MeshShape,
    NotOffered,
    Partial,
    Placement,
    Replicated,
    Shard,
    Windows,
    even,
    messages_along,
    reshard,
    slices,
)
from parallel_dl.model_parallel.axis import ModelAxis
from parallel_dl.mpi import Communicator, Ledger

WHOLE = (5, 6, 7, 3)


def placements(ranks):
    line = MeshShape(model=ranks)
    uneven = (1, *[0] * (ranks - 2), WHOLE[1] - 1) if ranks > 1 else (WHOLE[1],)
    rows = slices(even(WHOLE[2], ranks))
    halo = tuple(slice(max(0, own.start - 2), min(WHOLE[2], own.stop + 1)) for own in rows)
    states = [Invariant(), Replicated(), Partial(), Shard(0), Shard(1, even(WHOLE[1], ranks)), Shard(1, uneven)]
    states += [Shard(2, even(WHOLE[2], ranks)), Windows(2, halo)]
    found = [Placement(line, (state,)) for state in states]
    if ranks == 4:
        grid = line.refine("model", rows=2, columns=2)
        found.append(Placement.on(grid, rows=Shard(2, (4, 3)), columns=Shard(3, (2, 1))))
    return found


def draw(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape)


def parts(placement, ranks, seed):
    """By rank: what each has of an array in this placement, drawn at random."""
    if placement.uniform() == Partial():
        return [draw((seed, rank), WHOLE) for rank in range(ranks)]
    whole = draw(seed, WHOLE)
    return [whole[placement.index(rank, WHOLE)] for rank in range(ranks)]


def value(placement, of_ranks):
    """The whole array that these parts are."""
    if placement.uniform() == Partial():
        return sum(of_ranks)
    whole = np.empty(WHOLE)
    for rank, part in enumerate(of_ranks):
        whole[placement.index(rank, WHOLE)] = part
    return whole


def cotangents(placement, ranks, seed):
    """By rank: a gradient of an array in this placement: Replicated has a summand on each, windows each their own."""
    state = placement.uniform()
    if state == Replicated() or placement.has(Windows):
        return [draw((seed, rank), placement.shape(rank, WHOLE)) for rank in range(ranks)]
    whole = draw(seed, WHOLE)
    return [whole[placement.index(rank, WHOLE)] for rank in range(ranks)]


def product(placement, values, gradients):
    """<value, gradient> of the whole: what is the same on all ranks counts once."""
    state = placement.uniform()
    once = state == Invariant()
    pairs = [(values[0], gradients[0])] if once else list(zip(values, gradients))
    return sum(float((x * g).sum()) for x, g in pairs)


@pytest.mark.ranks(1, 2, 3, 4)
def test_values_adjoints_and_messages(comm):
    ledger = Ledger()
    counted = Communicator(comm.mpi, checked=False, ledger=ledger, axis="model")
    axis = ModelAxis(counted)
    axis.samples = WHOLE[0]
    for before, after in itertools.product(placements(comm.size), placements(comm.size)):
        if before.has(Windows):
            continue
        try:
            path = reshard(before, after, WHOLE)
        except NotOffered:
            continue
        own, name = parts(before, comm.size, 1), f"{before} -> {after}"
        x = Tensor(own[comm.rank].copy(), requires_grad=True)
        ledger.clear()
        with ledger.counting():
            y = axis.make(path, x, "here")
            y = y if path else y + 0.0
            gradients = cotangents(after, comm.size, 2)
            y.backward(gradients[comm.rank].copy())
        there = comm.all_gather_object(y.data)
        whole = value(before, own)
        if after.uniform() == Partial():
            np.testing.assert_allclose(value(after, there), whole, err_msg=name)
        else:
            for rank, part in enumerate(there):
                np.testing.assert_allclose(part, whole[after.index(rank, WHOLE)], err_msg=name, rtol=1e-12, atol=1e-14)
        back = comm.all_gather_object(x.grad)
        forward = product(after, there, gradients)
        assert product(before, own, back) == pytest.approx(forward, rel=1e-11, abs=1e-11), name
        if before.uniform() == Partial() or before.uniform() == Invariant():
            assert len({gradient.tobytes() for gradient in back}) == 1, name
        planned = {}
        for one in messages_along(path, comm.rank, before.shape(comm.rank, WHOLE), WHOLE):
            had = planned.get((one.direction, one.call), (0, 0))
            planned[one.direction, one.call] = had[0] + one.messages, had[1] + one.values
        sent = {(row.direction, row.call): (row.messages, row.values) for row in ledger.rows()}
        assert sent == planned, name
    axis.free()


@pytest.mark.ranks(2, 3)
def test_a_constant_is_cut_where_it_is(comm):
    """The network's own input has no gradient: nothing is sent for it."""
    axis, line = ModelAxis(comm), MeshShape(model=comm.size)
    x = draw(0, WHOLE)
    for after in placements(comm.size):
        if after.uniform() == Partial():
            continue
        path = reshard(Placement(line, (Invariant(),)), after, WHOLE)
        found = axis.make(path, x, "here")
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, x[after.index(comm.rank, WHOLE)])

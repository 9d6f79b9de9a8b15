"""assert_adjoint: the collectives pass it in every kind and size, and wrong ones fail it with what is wrong."""

import numpy as np
import pytest

from parallel_dl.autograd import Tensor, ops, primitive
from parallel_dl.equivalence import assert_adjoint
from parallel_dl.mpi import collectives

LENGTHS = [2, 0, 5, 1]


def movements(comm):
    """name -> (function, this rank's shape of x, kind of x, kind of y)."""
    whole, own = (3, 8), (LENGTHS[comm.rank], 4)
    c = collectives
    return {
        "replicate": (lambda x: c.replicate(x, comm), whole, "replicated", "varying"),
        "all_reduce": (lambda x: c.all_reduce(x, comm), whole, "varying", "replicated"),
        "shard": (lambda x: c.shard(x, comm, 1), whole, "replicated", "varying"),
        "unshard": (lambda x: c.unshard(x, comm), own, "varying", "replicated"),
        "all_gather": (lambda x: c.all_gather(x, comm), own, "varying", "varying"),
        "reduce_scatter": (lambda x: c.reduce_scatter(x, comm, 1), whole, "varying", "varying"),
        "all_to_all": (lambda x: c.all_to_all(x, comm, 1, 0), own, "varying", "varying"),
        "shift": (lambda x: c.shift(x, comm, 1), own, "varying", "varying"),
        "shift without a circle": (lambda x: c.shift(x, comm, -1, False), whole, "varying", "varying"),
        "halo": (lambda x: c.exchange_halo(x, comm, 0, 2, 1), own, "varying", "varying"),
        "broadcast": (lambda x: c.broadcast(x, comm, 0), whole, "rooted", "varying"),
        "reduce": (lambda x: c.reduce(x, comm, 0), whole, "varying", "rooted"),
        "scatter": (lambda x: c.scatter(x, comm, 0, 1), whole, "rooted", "varying"),
        "gather": (lambda x: c.gather(x, comm, 0), own, "varying", "rooted"),
    }


@pytest.mark.ranks(1, 2, 4)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_collectives(comm, dtype):
    for forward, shape, x, y in movements(comm).values():
        assert_adjoint(forward, shape, comm, x, y, dtype=dtype)


@pytest.mark.ranks(3)
def test_another_root_and_a_layer_of_several_movements(comm):
    assert_adjoint(lambda x: collectives.gather(x, comm, 2), (comm.rank, 2), comm, y="rooted", root=2)
    w = np.random.default_rng(comm.rank).random((4, 2))

    def split_by_input(x):
        part = collectives.shard(x, comm, 1, [1, 0, 1][: comm.size])
        return collectives.all_reduce(part @ w[:, : part.shape[1]].T, comm)

    assert_adjoint(split_by_input, (5, 2), comm, "replicated", "replicated")


# -- wrong ones ----------------------------------------------------------------------------------------------------
@primitive(collective=True)
def shift_the_same_way_back(x, *, comm):
    return comm.shift(x, 1), (lambda g: comm.shift(g, 1),)


@primitive(collective=True)
def self_adjoint_all_reduce(x, *, comm):
    return comm.all_reduce(x), (lambda g: comm.all_reduce(g),)


@primitive
def mean_of_ranks(x, *, comm):
    return comm.all_reduce(x) / comm.size, (lambda g: g,)


@primitive
def replicate_without_sum(x):
    return x, (lambda g: g,)


@primitive
def doubled(x):
    return x, (lambda g: 2 * g,)


@primitive
def own_slice_of_other_rows(x, *, comm):
    """The right ranks, the wrong places."""
    return comm.all_gather(x), (lambda g: comm.reduce_scatter(g, 0, [len(x)] * comm.size)[::-1].copy(),)


def message(comm, *arguments, **keywords):
    """What every rank raises, the same."""
    with pytest.raises(AssertionError) as caught:
        assert_adjoint(*arguments, **keywords)
    (text,) = set(comm.all_gather_object(str(caught.value)))
    return text


@pytest.mark.ranks(2, 3)
def test_a_sum_too_many(comm):
    text = message(comm, lambda x: self_adjoint_all_reduce(x, comm=comm), (3, 2), comm, y="replicated")
    assert f"the backward side is {comm.size} x the forward side everywhere" in text
    assert f"{comm.size} is the number of ranks: a sum over the ranks too many in backward" in text
    text = message(comm, lambda x: mean_of_ranks(x, comm=comm), (3, 2), comm, y="replicated")
    assert "or a division by their number in forward only" in text


@pytest.mark.ranks(3)
def test_a_wrong_shift_names_the_ranks(comm):
    text = message(comm, lambda x: shift_the_same_way_back(x, comm=comm), (4,), comm)
    assert text.startswith("backward is not the adjoint of forward:\n  <F x, y> = ")
    assert "their ratio is not the same everywhere: values come back from other ranks, or at other indices" in text
    assert "from rank 0 to rank 1: forward " in text
    assert ", backward 0\n" in text
    text = message(comm, lambda x: own_slice_of_other_rows(x, comm=comm), (2,), comm)
    assert "values come back from other ranks, or at other indices" in text
    assert "... and 3 more" in text


@pytest.mark.ranks(2)
def test_other_faults(comm):
    text = message(comm, replicate_without_sum, (3,), comm, "replicated", "varying")
    assert 'the gradient of x is not the same on ranks 0 and 1, but x="replicated" says so' in text
    assert "a sum over the ranks is missing in backward" in text
    text = message(comm, lambda x: x, (3,), comm, "varying", "replicated")
    assert 'F x is not the same on ranks 0 and 1, but y="replicated" says so' in text
    text = message(comm, lambda x: ops.power(x, 2), (3,), comm)
    assert "forward is not linear in x" in text
    text = message(comm, lambda x: Tensor(x.data) if comm.rank else x * 1.0, (3,), comm)
    assert "no gradient reaches x on rank 1" in text
    assert "forward gives a ndarray, not a Tensor" in message(comm, lambda x: x.data, (3,), comm)


@pytest.mark.ranks(1, 3)
def test_twice(comm):
    text = message(comm, lambda x: doubled(x), (3,), comm)
    assert "something is added up twice in backward" in text
    assert "the sign is wrong" in message(comm, lambda x: primitive(lambda a: (a, (lambda g: -g,)))(x), (3,), comm)


@pytest.mark.ranks(1)
def test_arguments(comm):
    with pytest.raises(ValueError, match="x='rotted', y='varying': expected one of varying, replicated, rooted"):
        assert_adjoint(lambda x: x, (3,), comm, x="rotted")
    with pytest.raises(ValueError, match="dtype 'int32': expected one of float32, float64"):
        assert_adjoint(lambda x: x, (3,), comm, dtype="int32")

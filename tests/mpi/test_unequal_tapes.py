"""Ranks whose tapes differ still meet in backward; a rank without a gradient counts as one with zeros."""

from contextlib import nullcontext

import numpy as np
import pytest
from movement_cases import LENGTHS, cases

from parallel_dl import partition
from parallel_dl.autograd import Tensor, no_grad
from parallel_dl.mpi import CollectiveMismatch, collectives

pytestmark = pytest.mark.ranks(2, 3, 4)


def gradients(case, odd_rank, how):
    """x.grad on this rank, when `odd_rank` does something else than the others."""
    odd = case.comm.rank == odd_rank
    x = case.input(requires_grad=not (odd and how in ("frozen", "detached")))
    y = case.run(x.detach() if odd and how == "detached" and x is not None else x)
    g = case.cotangent(y)
    if odd and how == "ignores":
        (Tensor(np.ones(3), True) * 2.0).sum().backward()
    else:
        y.backward(g * 0 if odd and how == "zeros" else g)
    return None if x is None else x.grad


@pytest.mark.parametrize("lengths", LENGTHS[:3], ids=str)
def test_one_rank_ignores_the_result(comm, lengths):
    """The others, and this rank itself, get the gradients that a loss with zero weight on that rank gives."""
    for odd_rank in range(comm.size):
        for name, case in cases(comm, lengths, 0).items():
            if case.y_kind == "replicated":
                continue  # used in the same way by all, and no communication in backward
            expected = gradients(case, odd_rank, "zeros")
            result = gradients(case, odd_rank, "ignores")
            if expected is None:
                assert result is None, name
            else:
                np.testing.assert_array_equal(result, expected, err_msg=name)


@pytest.mark.parametrize("how", ["frozen", "detached"])
def test_one_rank_freezes_or_detaches_its_input(comm, how):
    for odd_rank in range(comm.size):
        for name, case in cases(comm, LENGTHS[1], 1).items():
            if case.y_kind == "replicated" or (case.x_kind == "rooted" and odd_rank != case.root):
                continue
            result = gradients(case, odd_rank, how)
            expected = gradients(case, -1, "all the same")
            if comm.rank == odd_rank:
                assert result is None, name
            elif expected is not None:
                np.testing.assert_array_equal(result, expected, err_msg=name)


def test_two_movements_of_which_each_rank_uses_one(comm):
    x = Tensor(np.full(2, float(comm.rank + 1)), True)
    a = collectives.all_gather(x, comm)
    b = collectives.shift(x, comm, 1)
    loss = a.sum() if comm.rank == 0 else b.sum()
    loss.backward()
    # from a: only rank 0's use; from b: used by the next rank, unless that is rank 0
    expected = 1.0 + (1.0 if comm.rank != comm.size - 1 else 0.0)
    np.testing.assert_array_equal(x.grad, np.full(2, expected))


def test_recording_on_some_ranks_only_is_reported_at_once(comm):
    x = Tensor(np.ones(2), True)
    recording = no_grad() if comm.rank == 0 else nullcontext()
    with recording, pytest.raises(CollectiveMismatch, match=r"rank 0 calls collectives.all_gather .*no gradients rec"):
        collectives.all_gather(x, comm)


@pytest.mark.parametrize("movement", [collectives.broadcast, collectives.scatter])
def test_a_constant_on_the_root_meets_the_others_in_backward(comm, movement):
    whole = np.arange(8.0).reshape(4, 2)
    y = movement(whole if comm.rank == 0 else None, comm)
    own = whole if movement is collectives.broadcast else whole[partition.share(4, comm.size, comm.rank)]
    np.testing.assert_array_equal(y.data, own)
    y.sum().backward()
    comm.barrier()

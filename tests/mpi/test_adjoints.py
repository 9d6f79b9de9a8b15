"""Every differentiable movement F: its value against NumPy, and <F x, y> == <x, F* y>.

x and y are drawn independently: each rank's from a stream of its own, except what is replicated, which is drawn once
for all ranks and counted once. One draw for both would let a shift in the wrong direction pass.
"""

import numpy as np
import pytest
from movement_cases import LENGTHS, cases, counted_once, draw, slices

from parallel_dl.autograd import Tensor
from parallel_dl.mpi import collectives

pytestmark = pytest.mark.ranks(1, 2, 3, 4)


def sum_over_ranks(comm, value):
    return float(comm.all_reduce(np.array(value)))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_value_and_adjoint(comm, lengths, axis):
    for name, case in cases(comm, lengths, axis).items():
        x = case.input()
        start = x if x is not None else Tensor(np.zeros(0), True)
        y = case.run(x)
        case.check_value(y)
        g = case.cotangent(y)
        y.backward(g)
        forward = sum_over_ranks(comm, counted_once(y.data, g, comm, case.y_kind, case.root))
        adjoint = 0.0
        if x is not None:
            assert start.grad.shape == start.shape
            adjoint = counted_once(start.data, start.grad, comm, case.x_kind, case.root)
        adjoint = sum_over_ranks(comm, adjoint)
        assert adjoint == pytest.approx(forward, rel=1e-12, abs=1e-12), name
        if case.x_kind == "replicated":
            assert len(set(comm.all_gather_object(start.grad.tobytes()))) == 1, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 1e-2), (np.float32, 1e-5), (np.longdouble, 1e-12)])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_dtypes_and_memory_orders(comm, dtype, tolerance, order):
    for name, case in cases(comm, LENGTHS[1], 1).items():
        x = case.input(dtype, order)
        y = case.run(x)
        if case.x_kind != "rooted" or case.comm.rank == case.root:
            case.check_value(y, dtype, tolerance)
        y.backward(np.asfortranarray(case.cotangent(y)))
        if x is not None:
            assert x.grad.dtype == dtype, name
            assert x.grad.shape == x.shape, name


def test_a_layer_split_by_its_inputs(comm):
    """A layer split by its inputs, against the serial layer."""
    lengths = LENGTHS[1][: comm.size]
    w = Tensor(draw("weight", comm.rank, (3, lengths[comm.rank])), True)
    x = Tensor(draw("replicated input", 0, (4, sum(lengths))), True)

    def loss(x, w):
        part = collectives.shard(x, comm, 1, lengths)
        return (collectives.all_reduce(part @ w.T, comm).tanh()).sum()

    whole = comm.all_gather(w.data, 1)
    loss(x, w).backward()
    serial_x, serial_w = Tensor(x.data, True), Tensor(whole, True)
    (serial_x @ serial_w.T).tanh().sum().backward()
    np.testing.assert_allclose(x.grad, serial_x.grad, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(w.grad, serial_w.grad[:, slices(lengths)[comm.rank]], rtol=1e-12, atol=1e-14)


def test_a_constant_is_moved_without_history(comm):
    y = collectives.all_gather(np.ones((comm.rank, 2)), comm)
    assert y.is_leaf
    assert y.shape == (sum(range(comm.size)), 2)


def test_wrong_arguments(comm):
    with pytest.raises(ValueError, match="do not cut a length of 3"):
        collectives.shard(np.ones(3), comm, 0, [4] * comm.size)
    with pytest.raises(ValueError, match="neither can be negative"):
        collectives.exchange_halo(np.ones(3), comm, 0, -1, 0)

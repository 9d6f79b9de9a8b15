"""GradientAllReduce: sums, methods, missing gradients, overlap, misuse; replicas stay bitwise equal."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator, Ledger, LedgerRow, NotEnoughSharedMemory, window


def network():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).initialize(1)


def backward(model, comm, seed=0):
    x = np.random.default_rng((seed, comm.rank)).normal(size=(4, 6)).astype(np.float32)
    nn.cross_entropy(model(x), np.arange(4) % 3, total=4 * comm.size).backward()


METHODS = [("window", None), ("mpi", False), ("mpi", True)]


@pytest.mark.ranks(1, 2, 3, 4)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
def test_sums_over_the_ranks(comm, method, overlap):
    plain, model = network(), network()
    gradients = GradientAllReduce(model.parameters(), comm, method, overlap, bucket_bytes=64)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(3):
        plain.load_state_dict(model.state_dict())
        plain.zero_grad()
        backward(plain, comm, step)
        expected = [sum(comm.all_gather_object(p.grad)) for p in plain.parameters()]
        optimizer.zero_grad()
        backward(model, comm, step)
        gradients.all_reduce()
        for parameter, total in zip(model.parameters(), expected):
            np.testing.assert_allclose(parameter.grad, total, rtol=1e-5, atol=1e-7)
        optimizer.step()
    bits = comm.all_gather_object([p.data.tobytes() for p in model.parameters()])
    assert all(other == bits[0] for other in bits)
    gradients.free()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
def test_a_gradient_that_some_ranks_lack_is_the_sum_of_the_others(comm, method, overlap):
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm, method, overlap, bucket_bytes=64)
    layer = nn.Linear(4, 3)
    layer.load_state_dict(model[4].state_dict())
    for _ in range(2):
        model.zero_grad()
        layer.zero_grad()
        x, y = np.ones((2, 4), np.float32), np.array([0, 1])
        nn.cross_entropy(layer(x), y, total=1).backward()  # the sum: that of rank 1
        if comm.rank == 1:  # the last layer only
            nn.cross_entropy(model[4](x), y, total=1).backward()
        gradients.all_reduce()
        assert all(p.grad is None for p in model.parameters()[:4])
        assert layer.weight.grad.any()
        for parameter, expected in zip(model[4].parameters(), layer.parameters(), strict=True):
            np.testing.assert_array_equal(parameter.grad, expected.grad)
    gradients.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
def test_one_weight_alone(comm, method, overlap):
    """And one alone of another type, and one that is unfrozen later."""
    layers = [nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False), nn.Linear(5, 3, bias=False)]
    for layer, dtype in zip(layers, ("float32", "float64", "float32"), strict=True):
        layer.initialize(1, dtype)
    weights = [layer.weight for layer in layers]
    weights[2].requires_grad = False
    gradients = GradientAllReduce(weights, comm, method, overlap)
    for turn in range(2):
        for number, weight in enumerate(weights):
            weight.grad = None
            if weight.requires_grad:
                (weight * (10.0 * number + comm.rank + turn)).sum().backward()
        gradients.all_reduce()
        for number, weight in enumerate(weights):
            if weight.requires_grad:
                np.testing.assert_array_equal(weight.grad, np.full(weight.shape, 20 * number + 1 + 2 * turn))
        weights[2].requires_grad = True
    gradients.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
def test_accumulates_several_backward_passes(comm, method, overlap):
    model, plain = network(), network()
    gradients = GradientAllReduce(model.parameters(), comm, method, overlap, bucket_bytes=64)
    for seed in range(3):
        backward(plain, comm, seed)
        if seed < 2:
            with gradients.accumulate():
                backward(model, comm, seed)
        else:
            backward(model, comm, seed)
    gradients.all_reduce()
    for mine, other in zip(model.parameters(), plain.parameters()):
        np.testing.assert_allclose(mine.grad, sum(comm.all_gather_object(other.grad)), rtol=1e-5, atol=1e-7)
    gradients.free()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("bucket_bytes", [64, 100, 1 << 20])
def test_buckets_leave_during_backward(comm, bucket_bytes):
    """The last layer's first, each when it is complete, in a second backward too; none while gradients accumulate."""
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm, "mpi", True, bucket_bytes)
    assert [p for bucket in gradients._buckets[::-1] for p in bucket.parameters] == model.parameters()
    assert (len(gradients._buckets) > 1) == (bucket_bytes < 1000)
    left = []
    model[0].weight.register_post_accumulate_grad_hook(
        lambda _: left.append(sum(bucket.pending is not None for bucket in gradients._buckets))
    )
    for _ in range(2):
        model.zero_grad()
        with gradients.accumulate():
            backward(model, comm)
        assert not any(bucket.pending for bucket in gradients._buckets)
        model.zero_grad()
        backward(model, comm)
        assert all(bucket.pending is not None for bucket in gradients._buckets)
        gradients.all_reduce()
        assert not any(bucket.pending for bucket in gradients._buckets)
    assert left[0] == left[2] == 0
    assert left[1] >= len(gradients._buckets) - 1
    gradients.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
def test_forgetting_zero_grad_is_an_error_not_a_wrong_sum(comm, method, overlap):
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm, method, overlap)
    backward(model, comm)
    gradients.all_reduce()
    backward(model, comm)
    with pytest.raises(RuntimeError, match="call zero_grad"):
        gradients.all_reduce()
    model.zero_grad()
    gradients.free()


@pytest.mark.ranks(2)
def test_the_shared_result_cannot_be_changed_by_one_rank(comm):
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm, "window")
    backward(model, comm)
    gradients.all_reduce()
    with pytest.raises(ValueError, match="read-only"):
        model[0].weight.grad *= 2
    gradients.free()


@pytest.mark.ranks(2, 3)
def test_replicas_must_begin_equal(comm):
    model = network().initialize(comm.rank)
    with pytest.raises(InputError, match="the weights of rank 1 are not those of rank 0"):
        GradientAllReduce(model.parameters(), comm)


@pytest.mark.ranks(2, 3)
def test_one_bit_of_any_weight_or_buffer_makes_replicas_differ(comm):
    """Of the first value and of the last, on the last rank."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).initialize(1)
    weights = [("weights", parameter.data) for parameter in model.parameters()]
    for what, array in weights + [("buffers", buffer) for buffer in model.buffers()]:
        for place in (0, -1):
            flat = array.reshape(-1)
            before = flat[place].copy()
            if comm.rank == comm.size - 1:
                flat[place] = np.nextafter(before, np.float32(2))
            with pytest.raises(InputError, match=f"the {what} of rank {comm.size - 1} are not those of rank 0"):
                GradientAllReduce(model.parameters(), comm)
            flat[place] = before
    GradientAllReduce(model.parameters(), comm).free()


@pytest.mark.ranks(2)
def test_falls_back_to_mpi_when_shared_memory_is_short(comm, monkeypatch):
    monkeypatch.setattr(window, "_available", lambda: 1000)
    with pytest.raises(NotEnoughSharedMemory):
        window.SharedWindow(comm, 10_000)
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm)
    assert gradients.method == "mpi"
    assert "MPI's all-reduce" in gradients.note
    plain = network()
    backward(plain, comm)
    backward(model, comm)
    gradients.all_reduce()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(mine.grad, sum(comm.all_gather_object(other.grad)), rtol=1e-5, atol=1e-7)


@pytest.mark.ranks(1)
def test_unknown_method(comm):
    with pytest.raises(InputError, match="all-reduce method 'ring': expected one of auto, window, mpi"):
        GradientAllReduce(network().parameters(), comm, "ring")


@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
def test_what_a_ledger_counts(comm, method, overlap):
    """All gradients, each filling whole cache lines, and one number per parameter: whether the rank has one."""
    model = network()
    counted = Communicator(comm.mpi, checked=True, ledger=Ledger(), axis="data")
    with counted.ledger.counting():
        gradients = GradientAllReduce(model.parameters(), counted, method, overlap, bucket_bytes=64)
        counted.ledger.clear()  # that the replicas are equal
        backward(model, comm)
        gradients.all_reduce()
        model.zero_grad()
        with gradients.accumulate():  # no bucket leaves during backward
            backward(model, comm)
        gradients.all_reduce()
    gradients.free()
    numbers = (32 + 16) + (32 + 16) + (16 + 16) + 6  # of 30 + 5, 20 + 4 and 12 + 3 weights
    if overlap:
        sums = {"call": "all_reduce", "messages": 2 * (len(gradients._buckets) + 1), "shared_memory_bytes": 0}
        assert len(gradients._buckets) > 1 or comm.size == 1
    elif method == "mpi":
        sums = {"call": "all_reduce", "messages": 2, "shared_memory_bytes": 0}
    else:
        sums = {"call": "window", "messages": 0, "shared_memory_bytes": 2 * 4 * numbers}
    values = 0 if method == "window" else 2 * numbers
    row = LedgerRow(comm.rank, "data", "gradients", "backward", values=values, bytes=4 * values, **sums)
    assert counted.ledger.rows() == ([row] if comm.size > 1 else [])

"""Synchronised batch norm: who meets whom, and when; local statistics; refusals on all ranks."""

import copy

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor, abandon, no_grad
from parallel_dl.autograd.meeting import awaited
from parallel_dl.data_parallel import GradientAllReduce, synchronize_batch_norm
from parallel_dl.data_parallel.batch_norm import average_running_statistics
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator, Ledger, window


def network(**options):
    return nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5, **options), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False)
    ).initialize(1, "float64")


def own_samples(comm, samples=4):
    return np.random.default_rng(comm.rank).normal(size=(samples, 6)) + comm.rank


def whole_batch(comm, samples=4):
    return np.concatenate([np.random.default_rng(rank).normal(size=(samples, 6)) + rank for rank in range(comm.size)])


def all_equal(comm, arrays):
    bits = comm.all_gather_object([array.tobytes() for array in arrays])
    return all(other == bits[0] for other in bits)


def require_buffers_of_the_whole_batch(comm, model, forwards=1):
    """Running statistics are the same bits on all ranks, and those of a serial network that has seen every sample."""
    serial = network()
    for _ in range(forwards):
        serial(whole_batch(comm))
    for own, expected in zip(model.buffers(), serial.buffers(), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-14)
    assert all_equal(comm, model.buffers())


@pytest.mark.ranks(1, 2, 3)
def test_forward_and_input_gradient_are_those_of_the_whole_batch(comm):
    serial, model = network(), network()
    gradients = GradientAllReduce(model.parameters(), comm)
    x, own = Tensor(whole_batch(comm), requires_grad=True), Tensor(own_samples(comm), requires_grad=True)
    y = serial(x)
    (y * y * y).sum().backward()
    part = model(own)
    (part * part * part).sum().backward()
    here = slice(4 * comm.rank, 4 * comm.rank + 4)
    np.testing.assert_allclose(part.data, y.data[here], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(own.grad, x.grad[here], rtol=1e-10, atol=1e-12)
    require_buffers_of_the_whole_batch(comm, model)
    gradients.free()


@pytest.mark.ranks(2, 3)
def test_frozen_layers_detached_inputs_and_unused_branches_do_not_hang(comm):
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm)
    x = Tensor(own_samples(comm), requires_grad=comm.rank == 0)
    if comm.rank == 1:  # not the same on all ranks: only there
        model[1].weight.requires_grad = model[1].bias.requires_grad = False
        model[0].weight.requires_grad = model[0].bias.requires_grad = False
    y = model[1](model[0](x).detach() if comm.rank == 0 else model[0](x))
    unused = model[4](model[3](y))
    loss = y.sum() * 1.0 if comm.rank == 0 else (y + unused.sum()).sum()
    loss.backward()
    assert not awaited()
    gradients.all_reduce()
    gradients.free()


@pytest.mark.ranks(2, 3)
def test_a_network_that_begins_with_batch_norm_takes_arrays(comm):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)).initialize(0, "float64")
    gradients = GradientAllReduce(model.parameters(), comm)
    y = model(own_samples(comm))
    whole = whole_batch(comm)
    np.testing.assert_allclose(model[0].running_mean, 0.1 * whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(model[0].running_var, 0.9 + 0.1 * whole.var(0, ddof=1), rtol=1e-12)
    y.sum().backward()
    gradients.all_reduce()
    np.testing.assert_allclose(model[0].bias.grad, 4 * comm.size * model[1].weight.data.sum(0), rtol=1e-12)
    gradients.free()


@pytest.mark.ranks(2, 3)
def test_evaluation_and_no_grad(comm):
    """Evaluation needs no other rank; a forward without a record leaves nothing to meet for."""
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm)
    with no_grad():
        model(own_samples(comm))
    assert not awaited()
    model.eval()
    if comm.rank == 0:
        model(np.ones((1, 6))).sum().backward()
        model.zero_grad()
    same = model(np.ones((2, 6))).data
    assert all_equal(comm, [same])
    serial = network()
    serial(whole_batch(comm))
    np.testing.assert_allclose(same, serial.eval()(np.ones((2, 6))).data, rtol=1e-12)
    gradients.free()


@pytest.mark.ranks(1)
def test_on_one_rank_a_forward_without_backward_leaves_nothing_awaited(comm):
    model = network()
    GradientAllReduce(model.parameters(), comm)
    assert model(own_samples(comm)).requires_grad
    assert not awaited()


@pytest.mark.ranks(2, 3)
def test_the_global_count_decides_whether_there_are_enough_values(comm):
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm)
    x = own_samples(comm, 2)
    model(x[: 2 if comm.rank == 0 else 0]).sum().backward()  # two on one rank, none on the others
    model(x[: 1 if comm.rank < 2 else 0]).sum().backward()  # one each
    serial, all_samples = network(), whole_batch(comm, 2)
    for samples in (all_samples[:2], all_samples[[0, 2]]):
        serial(samples)
    for own, expected in zip(model.buffers(), serial.buffers(), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-14)
    before = [buffer.copy() for buffer in model.buffers()]
    with no_grad():
        assert model(x[:0]).shape == (0, 4)  # none at all
    assert all(np.array_equal(old, new) for old, new in zip(before, model.buffers()))
    with no_grad(), pytest.raises(InputError, match=r"layer 1: got an input of shape \(., 5\), one value per feature"):
        model(x[: 1 if comm.rank == 0 else 0])
    gradients.free()


@pytest.mark.ranks(2, 3)
def test_local_statistics(comm):
    model = network(statistics="local")
    gradients = GradientAllReduce(model.parameters(), comm)
    x = own_samples(comm)
    assert "local statistics" in repr(model)
    hidden = x @ model[0].weight.data.T + model[0].bias.data
    normal = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    np.testing.assert_allclose(model[1](model[0](Tensor(x))).data, normal, rtol=1e-12, atol=1e-12)
    own_means = comm.all_gather_object(model[1].running_mean.copy())
    assert not np.array_equal(own_means[0], own_means[1])
    model(x).sum().backward()
    of_ranks = comm.all_gather_object([buffer.copy() for buffer in model.buffers()])
    gradients.all_reduce()
    assert all_equal(comm, model.buffers())
    for buffer, *each in zip(model.buffers(), *of_ranks, strict=True):
        np.testing.assert_allclose(buffer, sum(each) / comm.size, rtol=1e-14)
    gradients.free()


@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_local_running_statistics_become_their_means(comm, dtype):
    """Of layers with different widths, one of which is there twice; what is not local is nobody's to average."""
    twice = nn.BatchNorm1d(3, statistics="local")
    layers = [twice, nn.BatchNorm1d(2, statistics="local"), twice, nn.BatchNorm1d(2, statistics="global")]
    for number, layer in enumerate(layers):
        layer.initialize(0, dtype)
        layer.running_mean[...] = np.arange(len(layer.running_mean)) + 10 * number + 0.5 * comm.rank
        layer.running_var[...] = 100 + number + comm.rank**2
    local, other = layers[:3], layers[3]
    before = [buffer.copy() for buffer in (other.running_mean, other.running_var)]
    average_running_statistics(local, comm)
    ranks = np.arange(comm.size)
    for number, layer in enumerate(layers[:3]):
        number = 2 if layer is twice else number  # the last that was written into it
        expected = np.arange(len(layer.running_mean)) + 10 * number + 0.5 * ranks.mean()
        np.testing.assert_allclose(layer.running_mean, expected, rtol=1e-6 if dtype == "float32" else 1e-14)
        np.testing.assert_allclose(
            layer.running_var, 100 + number + (ranks**2).mean(), rtol=1e-6 if dtype == "float32" else 1e-14
        )
    assert [buffer.tolist() for buffer in (other.running_mean, other.running_var)] == [b.tolist() for b in before]


@pytest.mark.ranks(2, 3)
def test_local_statistics_of_two_updates_of_a_training(comm):
    """Rank by rank as a serial layer with its share has them, then the mean, from which the next update goes on."""
    model = nn.Sequential(nn.BatchNorm1d(6, statistics="local"), nn.Linear(6, 1)).initialize(0, "float64")
    gradients = GradientAllReduce(model.parameters(), comm)
    mean, var = np.zeros(6), np.ones(6)
    for step in range(2):
        shares = [np.random.default_rng([step, rank]).normal(rank, 1 + rank, (4, 6)) for rank in range(comm.size)]
        model.zero_grad()
        model(shares[comm.rank]).sum().backward()
        gradients.all_reduce()
        mean = np.mean([0.9 * mean + 0.1 * share.mean(0) for share in shares], axis=0)
        var = np.mean([0.9 * var + 0.1 * share.var(0, ddof=1) for share in shares], axis=0)
        np.testing.assert_allclose(model[0].running_mean, mean, rtol=1e-12)
        np.testing.assert_allclose(model[0].running_var, var, rtol=1e-12)
    gradients.free()


@pytest.mark.ranks(2)
def test_running_statistics_must_begin_equal(comm):
    model = network()
    model[1].running_mean += comm.rank
    with pytest.raises(InputError, match="the buffers of rank 1 are not those of rank 0"):
        GradientAllReduce(model.parameters(), comm)


@pytest.mark.ranks(2)
def test_parameters_of_one_layer_are_enough_to_find_the_network(comm):
    model = network()
    gradients = GradientAllReduce(model[3].parameters(), comm)
    assert model[1].total is not None
    assert model[4].total is not None
    gradients.free()
    assert model[1].total is None
    assert model[4].total is None


@pytest.mark.ranks(2)
def test_freeing_one_of_two_leaves_the_other_synchronised(comm):
    """Two groups of parameters of one network, as two optimizers have them."""
    model = network()
    first = GradientAllReduce(model[0].parameters(), comm)
    second = GradientAllReduce(model[3].parameters(), comm)
    second.free()
    model(own_samples(comm)).sum().backward()
    require_buffers_of_the_whole_batch(comm, model)
    third = GradientAllReduce(model[3].parameters(), comm)
    first.free()
    assert model[1].total is not None
    third.free()
    assert model[1].total is None


@pytest.mark.ranks(2)
def test_frozen_weights_must_be_equal(comm):
    model = network()
    model[0].weight.requires_grad = False
    model[0].weight.data[...] += comm.rank
    with pytest.raises(InputError, match="the weights of rank 1 are not those of rank 0"):
        GradientAllReduce(model.parameters(), comm)


@pytest.mark.ranks(2)
def test_backward_after_free_is_refused(comm):
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm)
    loss = model(own_samples(comm)).sum()
    gradients.free()
    with pytest.raises(RuntimeError, match="communicator was freed"):
        loss.backward()
    abandon()


@pytest.mark.ranks(2)
def test_short_shared_memory_leaves_it_synchronised(comm, monkeypatch):
    monkeypatch.setattr(window, "_available", lambda: 100)
    model = network()
    gradients = GradientAllReduce(model.parameters(), comm)
    assert gradients.method == "mpi"
    for _ in range(2):
        model(own_samples(comm)).sum().backward()
    require_buffers_of_the_whole_batch(comm, model, forwards=2)
    gradients.free()


@pytest.mark.ranks(2)
def test_a_copy_is_serial_until_it_is_synchronised_itself(comm):
    model = network()
    synchronize_batch_norm(model, comm)
    for twin in (copy.deepcopy(model), copy.deepcopy(model[1])):
        layer = twin[1] if isinstance(twin, nn.Sequential) else twin
        assert layer.total is None
        assert layer.running_mean is layer.buffers()[0]


@pytest.mark.ranks(1, 2, 3)
def test_what_a_ledger_counts(comm):
    """Per layer: sums and their number, squares, and in backward two sums; running statistics once per update."""
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Sequential(nn.BatchNorm1d(6)), nn.BatchNorm1d(6, statistics="local"))
    model.initialize(0, "float64")
    counted = Communicator(comm.mpi, checked=True, ledger=Ledger(), axis="data")
    gradients = GradientAllReduce(model.parameters(), counted, "window")
    with counted.ledger.counting():
        for _ in range(2):
            model.zero_grad()
            model(Tensor(own_samples(comm), requires_grad=True)).sum().backward()
            gradients.all_reduce()
    gradients.free()
    rows = [row for row in counted.ledger.rows() if row.call != "window"]
    entered = {(row.axis, row.layer, row.direction, row.call): (row.messages, row.values, row.bytes) for row in rows}
    assert len(entered) == len(rows)
    layers = ("0", "1.0") if comm.size > 1 else ()
    expected = {("data", layer, "forward", "all_reduce"): (4, 26, 208) for layer in layers}
    expected |= {("data", layer, "backward", "all_reduce"): (2, 24, 192) for layer in layers}
    if comm.size > 1:
        expected["data", "running statistics", "backward", "all_reduce"] = (2, 24, 192)
    assert entered == expected

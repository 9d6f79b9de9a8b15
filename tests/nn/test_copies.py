"""Copies of networks: deepcopy and pickle give a network of its own, whatever the first one has been through."""

import copy
import pickle

import numpy as np
import pytest

from parallel_dl import networks, nn, optim
from parallel_dl.data_parallel import GradientAllReduce


def pickled(network):
    return pickle.loads(pickle.dumps(network))


COPIES = [copy.deepcopy, pickled]


def everything():
    """Every kind of layer with state, weights tied, frozen and not drawn yet."""
    shared = nn.Linear(6, 6)
    network = nn.Sequential(
        nn.Linear(5, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        shared,
        nn.LayerNorm(6),
        nn.GELU(),
        shared,
        nn.Branches(nn.Linear(6, 2), nn.Sequential(nn.Sigmoid(), nn.Linear(6, 2))),
    )
    network.tied = nn.Linear(6, 6)
    network.tied.weight = shared.weight
    network[1].weight.requires_grad = False
    return network.initialize(3, "float64", fill=False)


def losses(network, optimizer, steps=4):
    random = np.random.default_rng(0)
    found = []
    for step in range(steps):
        network.set_position(step, 0)
        optimizer.zero_grad()
        loss = network(random.normal(size=(8, 5))).sum()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def build():
    layers = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2)
    return nn.Sequential(*layers).initialize(3, "float64")


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_trains_like_the_original(how):
    first = build()
    optimizer = optim.SGD(first.parameters(), 0.1)
    losses(first, optimizer, 2)
    twin = how(first)
    before = first.state_dict()
    of_twin = losses(twin, optim.SGD(twin.parameters(), 0.1))
    assert all(np.array_equal(first.state_dict()[name], values) for name, values in before.items())
    assert len(set(of_twin)) == len(of_twin)
    assert losses(first, optimizer) == of_twin


@pytest.mark.parametrize("how", COPIES)
def test_names_ties_and_lazy_weights_survive(how):
    network = everything()
    twin = how(network)
    assert not any(p.is_filled for n in (network, twin) for p in n.parameters())
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in network.named_parameters()]
    assert twin.tied.weight is twin[3].weight
    assert twin[6] is twin[3]
    assert not twin[1].weight.requires_grad
    for (name, a), b in zip(twin.named_parameters(), network.parameters()):
        assert (a.name, b.name) == (name, name)
        np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize("how", COPIES)
def test_a_part_can_be_copied_alone(how):
    network = everything().initialize(3)  # a part has other names: what it has not drawn, it would draw otherwise
    tied = how(network.tied)
    assert {name: p.name for name, p in tied.named_parameters()} == {n: n for n in ("weight", "bias")}
    np.testing.assert_array_equal(tied.weight.data, network[3].weight.data)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_gradients_but_neither_buffers_nor_hooks(how):
    network = build()
    optim.SGD(network.parameters(), 0.1)
    called = []
    network[0].weight.register_post_accumulate_grad_hook(called.append)
    network(np.ones((2, 5))).sum().backward()
    assert called
    twin = how(network)
    called.clear()
    for a, b in zip(twin.parameters(), network.parameters()):
        np.testing.assert_array_equal(a.grad, b.grad)
        assert a.grad is not b.grad
        assert a.grad_buffer is None
    twin.zero_grad()
    twin(np.ones((2, 5))).sum().backward()
    assert not called


def test_a_target_network_follows_by_hand():
    """An average of weights (EMA), written as everybody writes it."""
    network = build()
    optimizer = optim.Adam(network.parameters(), 0.1)
    target = copy.deepcopy(network)
    for _ in range(3):
        losses(network, optimizer, 1)
        for slow, fast in zip(target.parameters(), network.parameters()):
            slow.data = 0.9 * slow.data + 0.1 * fast.data
    mixed = copy.deepcopy(target)
    of_mixed = losses(mixed, optim.SGD(mixed.parameters(), 0.1))
    assert losses(target, optim.SGD(target.parameters(), 0.1)) == of_mixed
    assert len(set(of_mixed)) == 4


@pytest.mark.ranks(2)
@pytest.mark.parametrize("method", ["window", "mpi"])
def test_a_copy_of_a_network_in_data_parallel_training(comm, method):
    network, plain = build(), build()
    gradients = GradientAllReduce(network.parameters(), comm, method, overlap=method == "mpi")
    network(np.ones((2, 5))).sum().backward()
    gradients.all_reduce()
    for how in COPIES:
        alone = []
        for one in (how(network), how(plain)):
            one[1].load_state_dict(plain[1].state_dict())
            alone.append(losses(one, optim.SGD(one.parameters(), 0.1)))
        assert alone[0] == alone[1]
        assert len(set(alone[0])) == 4
    gradients.free()
    with pytest.raises(TypeError, match="make one for the parameters of the copied network"):
        copy.deepcopy(gradients)


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_every_network_can_be_pickled(name):
    own = networks.NETWORKS[name]
    network = networks.create(name, own.input_shape or (3, 64, 64), own.classes or 10)
    assert [n for n, _ in pickled(network).named_parameters()] == [n for n, _ in network.named_parameters()]

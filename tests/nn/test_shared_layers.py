"""A layer in several places: a mask for each, one state for all, and names that stay right when layers are replaced."""

import copy

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.autograd import Tensor
from parallel_dl.nn.streams import keep_mask

SHAPE = (64, 256)


class Twice(nn.Module):
    """One dropout, passed twice."""

    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        return self.drop(self.drop(x))


class Holder(nn.Module):
    """Calls the layer by the name that it has here."""

    def __init__(self, layer):
        super().__init__()
        self.mine = layer

    def forward(self, x):
        return self.mine(x)


def in_a_row(drop):
    return nn.Sequential(a=drop, b=nn.Identity(), c=drop)


def nested(drop):
    return nn.Sequential(nn.Sequential(drop), nn.Sequential(nn.Sequential(nn.Identity(), drop)))


def one_block(drop):
    block = nn.Sequential(nn.Identity(), drop)
    return nn.Sequential(block, block)


def in_own_layers(drop):
    return nn.Sequential(Holder(drop), Holder(drop))


def around(drop):
    return nn.Sequential(drop, Twice(nn.Identity()), Holder(nn.Sequential(drop)))


def passes(network, step=0, first=0):
    """Which units pass, for the samples from `first` on."""
    return network.set_position(step, first)(np.ones(SHAPE, np.float32)).data > 0


@pytest.mark.parametrize("build", [in_a_row, nested, one_block, in_own_layers, around, Twice])
@pytest.mark.parametrize("at", [True, False])
def test_each_place_draws_its_own_mask(build, at):
    network = build(nn.Dropout(0.5)).initialize(0)
    y = network.set_position(0 if at else None)(np.ones(SHAPE, np.float32)).data
    assert abs((y > 0).mean() - 0.25) < 0.02
    assert np.array_equal(passes(network), passes(network))
    assert not np.array_equal(passes(network, 0), passes(network, 1))
    assert np.array_equal(passes(network)[16:], passes(network, 0, 16)[:-16])  # by the sample's place in the batch


def test_side_by_side():
    drop = nn.Dropout(0.5)
    network = nn.Branches(drop, nn.Sequential(drop), Twice(drop), join="concatenate").initialize(0)
    one, two, three = np.split(network.set_position(0)(np.ones(SHAPE, np.float32)).data > 0, 3, axis=1)
    assert abs((one & two).mean() - 0.25) < 0.02
    assert abs((one & three).mean() - 0.125) < 0.02
    assert abs((one & two & three).mean() - 0.0625) < 0.02


def test_a_layer_passed_by_hand():
    """The network is never called as a whole; `at` says where a pass begins."""
    network = nn.Sequential(drop=nn.Dropout(0.5)).initialize(0).set_position(0)
    x = Tensor(np.ones(SHAPE, np.float32))
    first, second = (network.drop(x).data > 0 for _ in range(2))
    assert abs((first & second).mean() - 0.25) < 0.02
    assert np.array_equal(network.set_position(0).drop(x).data > 0, first)


def test_the_first_place_has_the_mask_of_a_layer_used_once():
    drop = nn.Dropout(0.5)
    network = nn.Sequential(a=drop, b=nn.Sequential(c=drop)).initialize(3).set_position(7)
    masks = [keep_mask(3, 7, name, SHAPE, 5, 0.5) for name in ("a.dropout", "b.c.dropout")]
    assert np.array_equal(passes(network, 7, 5), masks[0] & masks[1])
    alone = nn.Sequential(a=nn.Dropout(0.5)).initialize(3)
    assert np.array_equal(passes(alone, 7, 5), masks[0])


def test_an_error_in_a_layer_leaves_no_trace():
    drop = nn.Dropout(0.5)
    network = nn.Sequential(a=drop, fc=Holder(nn.Linear(3, 3)), c=drop).initialize(0)
    with pytest.raises(ValueError, match=r"layer fc\.mine: got an input"):
        network.set_position(0)(np.ones(SHAPE, np.float32))
    assert drop.place("x") == drop.path("x") == ("a.x", network)


# -- state ---------------------------------------------------------------------------------------------------------
def test_one_batch_norm_has_one_pair_of_statistics():
    norm = nn.BatchNorm1d(3)
    network = nn.Sequential(a=norm, fc=nn.Linear(3, 3), b=norm).initialize(0, "float64")
    assert [name for name, _ in network.named_buffers()] == ["a.running_mean", "a.running_var"]
    twin = copy.deepcopy(network)
    twin(np.random.default_rng(0).normal(size=(5, 3)))
    assert twin.a.running_mean is twin.b.running_mean
    assert twin.a.running_mean.any()
    assert not norm.running_mean.any()


def test_buffers_keep_their_memory():
    """Whoever else has it, such as another piece of the same layer, sees what is assigned."""
    one, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    other._buffers["running_mean"] = one.running_mean
    object.__setattr__(other, "running_mean", one.running_mean)
    network = nn.Sequential(one, other)
    one.running_mean = np.arange(3.0, dtype=np.float32)
    assert other.running_mean.tolist() == [0, 1, 2]
    for dtype in ("float32", "float64"):
        network.initialize(0, dtype)
        assert one.running_mean is other.running_mean
        assert (one.running_mean.dtype, one.running_mean.tolist()) == (dtype, [0, 0, 0])


# -- replacing a layer ---------------------------------------------------------------------------------------------
def three():
    return nn.Sequential(fc1=nn.Linear(4, 5), relu=nn.ReLU(), fc2=nn.Linear(5, 2)).initialize(0)


def by_name(network, layer):
    network.fc1 = layer


def by_number(network, layer):
    network[0] = layer


def by_number_from_behind(network, layer):
    network[-3] = layer


@pytest.mark.parametrize("assign", [by_name, by_number, by_number_from_behind])
def test_assignment_replaces_in_place(assign):
    network = three()
    layer = nn.Linear(4, 5)
    assign(network, layer)
    assert list(network._modules) == ["fc1", "relu", "fc2"]
    assert network(np.zeros((1, 4), np.float32)).shape == (1, 2)
    assert list(network.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert layer.path("weight") == ("fc1.weight", network)
    assert np.array_equal(layer.weight.data, three().fc1.weight.data)


def test_other_names_and_kinds():
    network = three()
    network.fc3 = nn.Linear(2, 2)
    network.relu = nn.Tanh()
    network.fc1.bias = nn.Parameter((5,), nn.initializers.constant(1.0))
    assert list(network._modules) == ["fc1", "relu", "fc2", "fc3"]
    assert list(network.state_dict())[:2] == ["fc1.weight", "fc1.bias"]
    network.relu = None
    assert list(network._modules) == ["fc1", "fc2", "fc3"]
    del network.fc2
    assert [name for name, _ in network.named_parameters()][2:] == ["fc3.weight", "fc3.bias"]
    with pytest.raises(IndexError):
        network[2] = nn.Tanh()
    with pytest.raises(AttributeError):
        del network.fc2


def test_a_layer_that_has_left_is_named_after_where_it_is():
    """Otherwise both would draw the same weights, by a name that none has in the network."""
    network = three()
    old, network.fc1 = network.fc1, nn.Linear(4, 5)
    network.last = old
    assert old.path("weight") == ("last.weight", network)
    shared = nn.Linear(4, 4)
    outer = nn.Sequential(a=nn.Sequential(x=shared), b=nn.Sequential(y=shared)).initialize(0, fill=False)
    outer.a.x = nn.Linear(4, 4)
    assert shared.path("weight") == ("b.y.weight", outer)
    drawn = shared.weight.data.copy()
    assert np.array_equal(outer.initialize(0).state_dict()["b.y.weight"], drawn)


def test_training_goes_through_the_new_layer():
    network = three()
    network.fc2 = nn.Linear(5, 3)
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    nn.cross_entropy(network(np.ones((2, 4), np.float32)), np.array([0, 2])).backward()
    before = network.fc2.weight.data.copy()
    optimizer.step()
    assert not np.array_equal(network.fc2.weight.data, before)

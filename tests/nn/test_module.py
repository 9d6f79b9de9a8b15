"""Modules: names, values that depend on seed and name alone, state, modes, what people see."""

import copy

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.errors import InputError
from parallel_dl.networks import MLP
from parallel_dl.nn.streams import keep_mask, parameter_values


def test_names_are_those_of_the_whole_network():
    network = nn.Sequential(first=nn.Sequential(nn.Linear(2, 3)), second=nn.Linear(3, 1, bias=False))
    assert [name for name, _ in network.named_parameters()] == ["first.0.weight", "first.0.bias", "second.weight"]
    assert network.first[0].path("weight")[0] == "first.0.weight"


def test_parameters_are_declared_first_and_filled_at_first_use():
    network = nn.Linear(20_000, 20_000)
    assert not network.weight.is_filled
    assert network.parameter_count() == 20_000 * 20_001
    assert not network.weight.is_filled


def test_values_do_not_depend_on_the_order_of_use():
    a, b = (MLP((8,), 3, (5,)) for _ in range(2))
    forward = [p.data.copy() for p in a.parameters()]
    backward = [p.data.copy() for p in reversed(b.parameters())][::-1]
    assert all(np.array_equal(x, y) for x, y in zip(forward, backward))
    explicit = MLP((8,), 3, (5,)).initialize(0).parameters()
    assert all(np.array_equal(x, y.data) for x, y in zip(forward, explicit))


def test_values_depend_on_seed_and_name():
    values = [MLP((8,), 3, (8, 8)).initialize(seed) for seed in (1, 2)]
    assert not np.array_equal(values[0].fc1.weight.data, values[1].fc1.weight.data)
    assert not np.array_equal(values[0].fc1.weight.data, values[0].fc2.weight.data)


@pytest.mark.parametrize("shape", [(600, 300), (256, 256), (1, 1000), (700,), (3, 5, 2, 2), (0, 4), ()])
def test_a_window_has_the_values_of_the_whole(shape):
    draw = nn.initializers.normal(1.0)
    whole = parameter_values(3, "w", shape, draw)
    matrix = whole.reshape(shape[0] if shape else 1, -1) if whole.size else np.zeros((0, 4))
    rows, columns = matrix.shape
    for row in (slice(0, rows), slice(rows // 3, 2 * rows // 3), slice(rows, rows)):
        for column in (slice(0, columns), slice(columns // 2, columns)):
            window = parameter_values(3, "w", shape, draw, (row, column))
            assert np.array_equal(window, matrix[row, column])


@pytest.mark.parametrize("first", [0, 1, 3, 7, 8, 13])
def test_a_shares_mask_is_the_slice_of_the_batchs_mask(first):
    whole = keep_mask(5, 2, "dropout1", (20, 7), 0, 0.3)
    assert np.array_equal(keep_mask(5, 2, "dropout1", (6, 7), first, 0.3), whole[first : first + 6])
    assert keep_mask(5, 2, "dropout1", (0, 7), first, 0.3).shape == (0, 7)
    assert not np.array_equal(whole, keep_mask(5, 3, "dropout1", (20, 7), 0, 0.3))
    assert abs(keep_mask(5, 2, "x", (1000, 100), 0, 0.3).mean() - 0.7) < 0.01


def test_samples_that_are_no_neighbours_have_the_batchs_mask():
    whole = keep_mask(5, 2, "dropout1", (20, 7), 0, 0.3)
    places = np.array([3, 4, 5, 11, 12, 0, 19, 7])
    assert np.array_equal(keep_mask(5, 2, "dropout1", (8, 7), places, 0.3), whole[places])
    assert keep_mask(5, 2, "dropout1", (0, 7), places[:0], 0.3).shape == (0, 7)
    with pytest.raises(ValueError, match="places of shape"):
        keep_mask(5, 2, "dropout1", (6, 7), places, 0.3)
    layer = nn.Dropout(0.3)
    x = np.ones((8, 7))
    batch = layer.set_position(2)(Tensor(np.ones((20, 7)))).data
    assert np.array_equal(layer.set_position(2, places)(Tensor(x)).data, batch[places])


def test_dropout_differs_from_one_forward_to_the_next_and_is_off_in_eval():
    layer = nn.Dropout(0.5)
    x = np.ones((4, 50), np.float32)
    first, second = layer(Tensor(x)).data, layer(Tensor(x)).data
    assert not np.array_equal(first, second)
    assert set(np.unique(first)) == {0.0, 2.0}
    layer.set_position(3)
    assert np.array_equal(layer(Tensor(x)).data, layer(Tensor(x)).data)
    assert layer.eval()(x) is x


def test_state_travels_between_networks():
    a, b = MLP((8,), 3).initialize(1), MLP((8,), 3).initialize(2)
    b.load_state_dict(a.state_dict())
    assert all(np.array_equal(x.data, y.data) for x, y in zip(a.parameters(), b.parameters()))
    with pytest.raises(KeyError, match=r"missing \['fc1.weight'\]"):
        b.load_state_dict({name: value for name, value in a.state_dict().items() if name != "fc1.weight"})
    with pytest.raises(ValueError, match=r"fc1.bias has shape \(1,\), expected"):
        b.load_state_dict({**a.state_dict(), "fc1.bias": np.zeros(1)})


def test_a_copy_is_independent_and_keeps_its_names():
    network = MLP((8,), 3).initialize(1)
    twin = copy.deepcopy(network)
    twin.fc1.weight.data[...] = 0
    assert network.fc1.weight.data.any()
    assert twin.fc1.path("weight") == ("fc1.weight", twin)


def test_repr_shows_shapes_and_counts():
    text = repr(MLP((1, 8, 8), 10, hidden=(16,)))
    assert "1,210 parameters" in text
    assert "fc1: Linear(64 -> 16)  weight (16, 64), bias (16,): 1,040 parameters" in text


def test_linear_refuses_another_width():
    with pytest.raises(InputError, match=r"layer fc1: got an input of shape \(2, 7\), needs \(..., 8\)"):
        MLP((8,), 3)(np.zeros((2, 7), np.float32))


def test_losses_divide_by_the_global_number():
    logits, targets = np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 2])
    whole = nn.cross_entropy(Tensor(logits), targets).item()
    parts = [nn.cross_entropy(Tensor(logits[s]), targets[s], 6).item() for s in (slice(0, 4), slice(4, 6), slice(6, 6))]
    assert whole == pytest.approx(sum(parts), rel=1e-14)
    assert nn.mse(Tensor(logits), logits + 2).item() == pytest.approx(4)
    with pytest.raises(ValueError, match=r"targets must be in 0\.\.2, found 0\.\.3"):
        nn.cross_entropy(Tensor(logits), targets + np.array([0, 0, 1, 0, 0, 0]))
    with pytest.raises(ValueError, match="must be integers"):
        nn.cross_entropy(Tensor(logits), targets.astype(float))

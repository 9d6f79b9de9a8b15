"""Normalisation layers: like PyTorch's in values, gradients and running statistics; groups; memory layout; refusals."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.autograd.meeting import awaited
from parallel_dl.autograd.ops import normalization
from parallel_dl.errors import InputError

repeatable = settings(max_examples=40, derandomize=True)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch, to compare with, is not installed (extra: bench)")


def values(*shape, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    return (2 * random.normal(size=shape) + random.normal(size=shape[1] if len(shape) == 2 else 1)).astype(dtype)


def as_convolutions_leave_it(x):
    """The same (N, C, H, W), contiguous as (H, C, W, N)."""
    return np.ascontiguousarray(x.transpose(2, 1, 3, 0)).transpose(3, 1, 0, 2)


def give_weights(ours, theirs, torch, seed=3):
    """Random weights for both layers."""
    random = np.random.default_rng(seed)
    for name, parameter in ours.named_parameters():
        parameter.data[...] = random.normal(size=parameter.shape)
        with torch.no_grad():
            getattr(theirs, name).copy_(torch.from_numpy(parameter.data))


def check_like_torch(torch, ours, theirs, x, tolerance=1e-12):
    """Values and all gradients, for one random gradient of the result."""
    own, other = Tensor(x, requires_grad=True), torch.from_numpy(x.copy()).requires_grad_()
    y, expected = ours(own), theirs(other)
    g = np.random.default_rng(9).normal(size=y.shape).astype(x.dtype)
    ours.zero_grad()
    y.backward(g)
    expected.backward(torch.from_numpy(g))
    pairs = [(y.data, expected.detach()), (own.grad, other.grad)]
    pairs += [(p.grad, getattr(theirs, name).grad) for name, p in ours.named_parameters()]
    for mine, reference in pairs:
        reference = reference.numpy()
        assert mine.dtype == x.dtype
        scale = np.abs(reference).max(initial=1e-3)
        np.testing.assert_allclose(mine / scale, reference / scale, rtol=0, atol=tolerance)
    for parameter in theirs.parameters():
        parameter.grad = None


# -- PyTorch -------------------------------------------------------------------------------------------------------
@repeatable
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 11),
    st.sampled_from([0.5, 0.75, 1.0, 1.3]),
    st.sampled_from([1e-4, 0.5]),
    st.sampled_from([1.0, 2.0]),
)
def test_local_response_norm_is_pytorchs(torch, first, rest, size, beta, alpha, k):
    ours = nn.LocalResponseNorm(size, alpha, beta, k)
    check_like_torch(torch, ours, torch.nn.LocalResponseNorm(size, alpha, beta, k), values(*first, *rest))


@repeatable
@given(
    st.integers(2, 6),
    st.integers(1, 5),
    st.lists(st.integers(1, 4), max_size=2),
    st.booleans(),
    st.sampled_from([1e-5, 0.1]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_batch_norm_is_pytorchs(torch, samples, features, rest, affine, eps, momentum):
    kind = "BatchNorm2d" if len(rest) == 2 else "BatchNorm1d"
    ours = getattr(nn, kind)(features, eps, momentum, affine).initialize(0, "float64")
    theirs = getattr(torch.nn, kind)(features, eps, momentum, affine, dtype=torch.float64)
    give_weights(ours, theirs, torch)
    for step in range(3):
        # two equal samples of one value amplify rounding by 1 / sqrt(eps)
        check_like_torch(torch, ours, theirs, values(samples, features, *rest, seed=step), 1e-9)
        for name in ("running_mean", "running_var"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name).numpy(), rtol=1e-12, atol=1e-13)
    ours.eval()
    theirs.eval()
    before = ours.state_dict()
    check_like_torch(torch, ours, theirs, values(samples, features, *rest, seed=7), 1e-11)
    assert all(np.array_equal(before[name], array) for name, array in ours.state_dict().items())


@repeatable
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=2),
    st.lists(st.integers(2, 5), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-5, 0.1]),
)
def test_layer_norm_is_pytorchs(torch, leading, shape, affine, bias, eps):
    ours = nn.LayerNorm(shape, eps, affine, bias).initialize(0, "float64")
    theirs = torch.nn.LayerNorm(shape, eps, affine, bias, dtype=torch.float64)
    give_weights(ours, theirs, torch)
    check_like_torch(torch, ours, theirs, values(*leading, *shape), 1e-9)


@pytest.mark.parametrize("block", [10**9, 20_000, 300])
@pytest.mark.parametrize("layout", [np.asarray, as_convolutions_leave_it])
def test_float32_in_either_layout_and_in_pieces_is_pytorchs(torch, layout, block, monkeypatch):
    """In one piece, cut along the outermost axis, and along several."""
    monkeypatch.setattr(normalization, "_BLOCK", block)
    x = layout(values(33, 6, 30, 31, dtype=np.float32) + np.float32(5))
    ours, theirs = nn.BatchNorm2d(6), torch.nn.BatchNorm2d(6)
    give_weights(ours, theirs, torch)
    check_like_torch(torch, ours, theirs, x, 3e-6)
    np.testing.assert_allclose(ours.running_var, theirs.running_var.numpy(), rtol=1e-5)
    check_like_torch(torch, nn.LocalResponseNorm(5, 0.5), torch.nn.LocalResponseNorm(5, 0.5), x, 3e-6)
    check_like_torch(torch, nn.LayerNorm((30, 31)), torch.nn.LayerNorm((30, 31)), x, 3e-5)


@pytest.mark.parametrize("block", [1, 5, 30, 100, 10**9])
@pytest.mark.parametrize("axes", [(0,), (0, 2, 3), (0, 1, 2, 3), ()])
@pytest.mark.parametrize("layout", [np.asarray, as_convolutions_leave_it])
def test_pieces_cover_every_value_once(layout, axes, block, monkeypatch):
    monkeypatch.setattr(normalization, "_BLOCK", block)
    covered = layout(np.zeros((7, 3, 5, 4), int))
    for piece in normalization._pieces(covered, axes):
        covered[piece] += 1
        assert all(axis in axes or part == slice(None) for axis, part in enumerate(piece))
    assert (covered == 1).all()


# -- groups, layouts -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups_are_the_blocks_of_channels_by_themselves(groups, size):
    x, g = values(3, 6, 2, 2), values(3, 6, 2, 2, seed=1)
    whole = Tensor(x, requires_grad=True)
    y = nn.LocalResponseNorm(size, 0.5, groups=groups)(whole)
    y.backward(g)
    for block in np.split(np.arange(6), groups):
        part = Tensor(x[:, block], requires_grad=True)
        expected = nn.LocalResponseNorm(size, 0.5)(part)
        expected.backward(g[:, block])
        np.testing.assert_allclose(y.data[:, block], expected.data, rtol=1e-14)
        np.testing.assert_allclose(whole.grad[:, block], part.grad, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    "layer", [nn.LocalResponseNorm(5, 0.5, groups=2), nn.BatchNorm2d(6), nn.BatchNorm2d(6).eval(), nn.LayerNorm((5, 4))]
)
def test_results_are_laid_out_as_their_inputs_are(layer):
    x, g = values(3, 6, 5, 4), values(3, 6, 5, 4, seed=1)
    results = []
    for layout in (np.asarray, as_convolutions_leave_it):
        own = Tensor(layout(x), requires_grad=True)
        y = layer(own)
        assert y.data.strides == own.data.strides
        (gradient,) = [edge[1](g) for edge in y.edges if edge[0] is own]
        assert gradient.strides == own.data.strides
        results.append((y.data, gradient))
    for plain, other in zip(*results):
        np.testing.assert_allclose(plain, other, rtol=1e-12, atol=1e-12)


# -- batch norm ----------------------------------------------------------------------------------------------------
def test_a_large_mean_costs_no_digits():
    x = values(50, 3)
    far = nn.BatchNorm1d(3, affine=False).initialize(0, "float64")(Tensor(x + 1e7)).data
    near = nn.BatchNorm1d(3, affine=False).initialize(0, "float64")(Tensor(x)).data
    np.testing.assert_allclose(far, near, atol=1e-7)


def test_a_forward_without_backward_leaves_nothing_awaited():
    assert nn.BatchNorm1d(3)(Tensor(values(4, 3), requires_grad=True)).requires_grad
    assert not awaited()


def test_one_value_per_feature_cannot_be_trained_on():
    network = nn.Sequential(norm=nn.BatchNorm1d(3))
    with pytest.raises(
        InputError, match=r"layer norm: got an input of shape \(1, 3\), one value per feature: training"
    ):
        network(values(1, 3))
    assert np.array_equal(network.norm.running_mean, np.zeros(3))
    assert network.eval()(values(1, 3)).shape == (1, 3)


def test_no_samples_change_nothing():
    layer = nn.BatchNorm2d(3)
    assert layer(np.zeros((0, 3, 2, 2), np.float32)).shape == (0, 3, 2, 2)
    assert np.array_equal(layer.running_mean, np.zeros(3))
    assert np.array_equal(layer.running_var, np.ones(3))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.BatchNorm1d(3), (2, 4), r"got an input of shape \(2, 4\), needs \(N, 3\) or \(N, 3, L\)"),
        (nn.BatchNorm1d(3), (2, 3, 4, 4), r"needs \(N, 3\) or \(N, 3, L\)"),
        (nn.BatchNorm2d(3), (2, 3), r"needs \(N, 3, H, W\)"),
        (nn.BatchNorm2d(3), (2, 4, 5, 5), r"needs \(N, 3, H, W\)"),
        (nn.LayerNorm((3, 4)), (2, 4, 3), r"got an input of shape \(2, 4, 3\), needs \(\.\.\., 3, 4\)"),
        (nn.LayerNorm((3, 4)), (4,), r"needs \(\.\.\., 3, 4\)"),
        (nn.LocalResponseNorm(5), (4,), r"got an input of shape \(4,\), needs \(N, C, \.\.\.\)"),
        (nn.LocalResponseNorm(5, groups=2), (2, 5, 2), r"needs \(N, C, \.\.\.\), C a multiple of 2"),
    ],
)
def test_another_shape_is_refused_with_the_layers_name(layer, shape, message):
    layer = copy.deepcopy(layer)
    with pytest.raises(InputError, match=f"layer block.norm: .*{message}"):
        nn.Sequential(block=nn.Sequential(norm=layer))(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm1d(-1),
        lambda: nn.BatchNorm2d(3, momentum=1.5),
        lambda: nn.BatchNorm2d(3, statistics="shared"),
        lambda: nn.LocalResponseNorm(0),
        lambda: nn.LocalResponseNorm(5, groups=0),
        lambda: nn.LayerNorm(()),
        lambda: nn.LayerNorm(0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(InputError):
        make()


# -- buffers -------------------------------------------------------------------------------------------------------
def test_buffers_are_state_but_no_parameters():
    network = nn.Sequential(first=nn.Linear(2, 3), norm=nn.BatchNorm1d(3)).initialize(1)
    assert list(network.state_dict())[-4:] == ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    assert [name for name, _ in network.named_buffers()] == ["norm.running_mean", "norm.running_var"]
    assert network.buffers()[0] is network.norm.running_mean
    assert network.parameter_count() == 3 * 2 + 3 + 3 + 3
    network(values(5, 2, dtype=np.float32))
    moved = network.state_dict()
    assert moved["norm.running_mean"].any()
    other = nn.Sequential(first=nn.Linear(2, 3), norm=nn.BatchNorm1d(3))
    other.load_state_dict(moved)
    assert np.array_equal(other.norm.running_var, moved["norm.running_var"])
    with pytest.raises(KeyError, match=r"missing \['norm.running_var'\]"):
        other.load_state_dict({name: value for name, value in moved.items() if name != "norm.running_var"})
    with pytest.raises(ValueError, match=r"norm.running_mean has shape \(1,\), expected \(3,\)"):
        other.load_state_dict({**moved, "norm.running_mean": np.zeros(1)})


def test_initialize_resets_buffers_and_gives_them_the_networks_dtype():
    layer = nn.BatchNorm1d(3)
    layer(values(5, 3, dtype=np.float32))
    assert layer.running_mean.dtype == np.float32
    layer.initialize(0, "float64")
    assert layer.running_mean.dtype == layer.buffers()[0].dtype == np.float64
    assert np.array_equal(layer.running_mean, np.zeros(3))
    assert np.array_equal(layer.running_var, np.ones(3))


def test_a_copy_has_buffers_of_its_own():
    layer = nn.BatchNorm1d(3)
    twin = copy.deepcopy(layer)
    twin(values(5, 3, dtype=np.float32))
    assert twin.running_mean is twin.buffers()[0]
    assert twin.running_mean.any()
    assert not layer.running_mean.any()


def test_registering_and_assigning_buffers():
    module = nn.Module()
    module.register_buffer("counts", np.arange(3))
    for name in ("counts", "forward", "a.b"):
        with pytest.raises(KeyError, match="cannot be the name of a buffer"):
            module.register_buffer(name, np.zeros(1))
    module.counts = [4, 5, 6]  # it stays a buffer
    assert np.array_equal(module.state_dict()["counts"], [4, 5, 6])
    module.initialize(0, "float64")
    assert module.counts.dtype == np.arange(3).dtype
    assert np.array_equal(module.counts, [0, 1, 2])


def test_evaluation_remembers_the_statistics_it_used():
    """A training pass between forward and backward moves the running statistics, not what was computed with them."""
    x = np.random.default_rng(0).standard_normal((6, 3))
    gradients = []
    for trained_between in (False, True):
        layer = nn.BatchNorm1d(3).initialize(0, "float64")
        layer(x)
        loss = layer.eval()(Tensor(x)).sum()
        if trained_between:
            layer.train()(10 + x)
        loss.backward()
        gradients.append(layer.weight.grad.copy())
    np.testing.assert_array_equal(*gradients)

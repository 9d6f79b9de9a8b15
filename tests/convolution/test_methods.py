"""Every way to convolve gives what the definition says, in values and gradients, for any sizes."""

import numpy as np
import pytest
from definition import convolutions, convolve
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_dl.autograd import Tensor, gradcheck, ops
from parallel_dl.convolution import METHODS, Geometry, choose, im2col, winograd
from parallel_dl.errors import InputError

SEEDS = st.integers(0, 2**16)
ANY = [name for name in METHODS if not name.startswith("winograd")]
WINOGRAD = [name for name in METHODS if name.startswith("winograd")]


def drawn(seed, *shapes, dtype=np.float64):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def run(x, weight, bias, g, **static):
    """Result and gradients of x, weight and bias."""
    leaves = [Tensor(array, requires_grad=True) for array in (x, weight, bias)]
    y = ops.conv2d(*leaves, **static)
    y.backward(g)
    return [y.data, *(leaf.grad for leaf in leaves)]


def require_close(ours, theirs, tolerance=1e-10):
    """Every difference is small beside the largest value (and beside 1)."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == tuple(b.shape)
        scale = max(1.0, np.abs(b).max(initial=0))
        assert np.abs(a - b).max(initial=0) <= tolerance * scale, ("result", "d x", "d weight", "d bias")[number]


@pytest.mark.parametrize("method", ANY)
@settings(max_examples=60, deadline=None)
@given(case=convolutions(), seed=SEEDS)
def test_the_definition(method, case, seed):
    x_shape, weight_shape, sizes = case
    x, weight = drawn(seed, x_shape, weight_shape)
    require_close([ops.conv2d(x, weight, method=method, **sizes).data], [convolve(x, weight, **sizes)])


@pytest.mark.parametrize("method", WINOGRAD)
@settings(max_examples=60, deadline=None)
@given(case=convolutions(kernels=(3, 3)), seed=SEEDS)
def test_winograd_is_the_definition_where_it_can(method, case, seed):
    x_shape, weight_shape, sizes = case
    x, weight = drawn(seed, x_shape, weight_shape)
    require_close([ops.conv2d(x, weight, method=method, **sizes).data], [convolve(x, weight, **sizes)])


@settings(max_examples=40, deadline=None)
@given(case=st.one_of(convolutions(), convolutions(kernels=(3, 3))), seed=SEEDS)
def test_gradients_of_all_methods_agree(case, seed):
    x_shape, weight_shape, sizes = case
    geometry = Geometry.of(x_shape, weight_shape, **sizes)
    arrays = drawn(seed, x_shape, weight_shape, weight_shape[:1], geometry.out_shape)
    reference = run(*arrays, method="direct", **sizes)
    for method in METHODS:
        if METHODS[method].refusal(geometry) is None:
            require_close(run(*arrays, method=method, **sizes), reference)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_check(method):
    arrays = drawn(3, (2, 4, 5, 7), (6, 2, 3, 3), (6,))
    gradcheck(ops.conv2d, *arrays, padding=(1, 2), groups=2, method=method)


@pytest.mark.parametrize("method", ANY)
def test_gradient_check_with_stride_and_dilation(method):
    arrays = drawn(4, (2, 3, 9, 8), (2, 3, 3, 2), (2,))
    gradcheck(ops.conv2d, *arrays, padding=((0, 2), (3, 1)), stride=(2, 3), dilation=(2, 1), method=method)


@pytest.mark.parametrize("module", [im2col, winograd])
@settings(max_examples=40, deadline=None)
@given(case=st.one_of(convolutions(), convolutions(kernels=(3, 3))), seed=SEEDS, block=st.sampled_from([1, 40, 400]))
def test_gradients_in_many_blocks(module, case, seed, block):
    """What stays in the cache is a block at a time; here blocks are so small that every case has several."""
    x_shape, weight_shape, sizes = case
    geometry = Geometry.of(x_shape, weight_shape, **sizes)
    arrays = drawn(seed, x_shape, weight_shape, weight_shape[:1], geometry.out_shape)
    reference = run(*arrays, method="direct", **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        for method in ("im2col", *WINOGRAD):
            if METHODS[method].refusal(geometry) is None:
                require_close(run(*arrays, method=method, **sizes), reference)


@pytest.mark.parametrize("method", METHODS)
def test_no_input_channels(method):
    x, weight, bias, g = drawn(9, (2, 0, 6, 5), (4, 0, 3, 3), (4,), (2, 4, 6, 5))
    value, dx, *_ = run(x, weight, bias, g, padding=1, method=method)
    np.testing.assert_array_equal(value, np.broadcast_to(bias[:, None, None], g.shape))
    assert dx.shape == x.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weight_gradient_in_its_own_time(method, dtype):
    """The gradient of the weight may be asked for later, or before that of the input."""
    x, weight, bias, g = drawn(5, (2, 3, 6, 6), (4, 3, 3, 3), (4,), (2, 4, 6, 6), dtype=dtype)
    at_once = run(x, weight, bias, g, padding=1, method=method)
    leaves = [Tensor(array, requires_grad=True) for array in (x, weight, bias)]
    deferred = ops.conv2d(*leaves, padding=1, method=method).backward(g, defer=leaves[1:])
    assert leaves[1].grad is None
    deferred.run()
    for leaf, gradient in zip(leaves, at_once[1:], strict=True):
        assert leaf.grad.dtype == dtype
        np.testing.assert_array_equal(leaf.grad, gradient)


@pytest.mark.parametrize("method", METHODS)
def test_no_samples(method):
    x, weight, bias, g = drawn(6, (0, 4, 6, 5), (2, 4, 3, 3), (2,), (0, 2, 6, 5))
    for gradient in run(x, weight, bias, g, padding=1, method=method)[2:]:
        assert not gradient.any()


@pytest.mark.parametrize("method", METHODS)
def test_error_in_float32(method):
    """Relative to the largest value: F(4x4, 3x3) within 3e-5, all others within 3e-6."""
    arrays = drawn(7, (4, 48, 13, 13), (40, 48, 3, 3), (40,), (4, 40, 13, 13))
    exact = run(*arrays, padding=1, method="direct")
    rounded = run(*(array.astype(np.float32) for array in arrays), padding=1, method=method)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() <= (3e-5 if method == "winograd4x4" else 3e-6) * np.abs(theirs).max()


def test_integers_stay_exact_in_float64():
    """What `auto` takes in float64, and F(2x2, 3x3), whose constants are halves, round nothing."""
    random = np.random.default_rng(8)
    x, weight, g = (random.integers(-9, 10, s).astype(float) for s in ((3, 32, 9, 9), (32, 32, 3, 3), (3, 32, 9, 9)))
    reference = run(x, weight, np.zeros(32), g, padding=1, method="direct")
    for method in ("auto", "im2col", "winograd"):
        for ours, theirs in zip(run(x, weight, np.zeros(32), g, padding=1, method=method), reference, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def by_torch(x, weight, bias, g, **sizes):
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'parallel_dl[bench]')")
    leaves = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, weight, bias)]
    y = torch.nn.functional.conv2d(*leaves, **sizes)
    y.backward(torch.from_numpy(g))
    return [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


@settings(max_examples=60, deadline=None)
@given(case=st.one_of(convolutions(1), convolutions(1, kernels=(3, 3))), seed=SEEDS)
def test_torch_agrees(case, seed):
    x_shape, weight_shape, sizes = case
    geometry = Geometry.of(x_shape, weight_shape, **sizes)
    arrays = drawn(seed, x_shape, weight_shape, weight_shape[:1], geometry.out_shape)
    theirs = by_torch(*arrays, **sizes)
    for method in METHODS:
        if METHODS[method].refusal(geometry) is None:
            require_close(run(*arrays, method=method, **sizes), theirs)


@pytest.mark.parametrize(
    ("shapes", "sizes", "dtype", "method"),
    [
        (((8, 64, 14, 14), (64, 64, 3, 3)), {"padding": 1}, np.float32, "winograd4x4"),
        (((8, 64, 14, 14), (64, 64, 3, 3)), {"padding": 1}, np.float64, "im2col"),
        (((8, 64, 14, 14), (64, 64, 3, 3)), {"padding": 1, "stride": 2}, np.float32, "im2col"),
        (((8, 3, 14, 14), (64, 3, 3, 3)), {"padding": 1}, np.float32, "im2col"),
        (((8, 64, 14, 14), (64, 1, 3, 3)), {"padding": 1, "groups": 64}, np.float32, "im2col"),
        (((8, 64, 14, 14), (64, 64, 5, 5)), {"padding": 2}, np.float32, "im2col"),
    ],
)
def test_choice(shapes, sizes, dtype, method):
    assert choose(Geometry.of(*shapes, **sizes), dtype) == method


def test_choice_does_not_depend_on_the_number_of_samples():
    for samples in (0, 1, 7, 512):
        assert choose(Geometry.of((samples, 64, 8, 8), (64, 64, 3, 3), padding=1), np.float32) == "winograd4x4"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"stride": 2},
            "method 'winograd' cannot do stride 2 x 2 (it needs 1 x 1); expected one of direct, im2col, fft",
        ),
        ({"dilation": (1, 2)}, "method 'winograd' cannot do dilation 1 x 2 (it needs 1 x 1)"),
        ({"method": "winogard"}, "unknown convolution method 'winogard': did you mean 'winograd'?"),
        ({"groups": 3}, "groups 3: must divide 4 input and 6 output channels; expected one of 1, 2"),
        ({"padding": -1}, "padding -1: expected a whole number, at least 0"),
        ({"stride": (1, 0)}, "stride (1, 0): expected a whole number, at least 1"),
    ],
)
def test_refusals(sizes, message):
    x, weight = drawn(0, (1, 4, 9, 9), (6, 2 if "groups" not in sizes else 4, 3, 3))
    with pytest.raises(InputError) as error:
        ops.conv2d(x, weight, **{"method": "winograd", "groups": 2, **sizes})
    assert message in str(error.value)
    assert "\n" not in str(error.value)

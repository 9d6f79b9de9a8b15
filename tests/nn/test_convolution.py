"""The layers of convolutional networks: PyTorch's sizes and initial ranges, errors that name the layer."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.errors import InputError


def images(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def small_network():
    return nn.Sequential(
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        conv2=nn.Conv2d(8, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2, bias=False),
        pool2=nn.AvgPool2d(2, stride=1),
        pool3=nn.GlobalAvgPool2d(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(6, 4),
    )


def test_a_network_agrees_with_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'parallel_dl[bench]')")
    network = small_network().initialize(3, "float64")
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, stride=2, padding=1),
        torch.nn.Conv2d(8, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2, bias=False),
        torch.nn.AvgPool2d(2, stride=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(6, 4),
    ).double()
    for own, other in zip(network.parameters(), theirs.parameters(), strict=True):
        assert own.shape == tuple(other.shape)
        other.data[...] = torch.from_numpy(own.data)
    x, y = images(5, 3, 13, 11, dtype=np.float64), np.array([0, 3, 1, 1, 2])
    loss = nn.cross_entropy(network(x), y)
    loss.backward()
    other_loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y))
    other_loss.backward()
    assert loss.item() == pytest.approx(other_loss.item(), rel=1e-13)
    for own, other in zip(network.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(own.grad, other.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_initial_values_lie_in_torchs_range():
    conv = nn.Conv2d(8, 64, 3, groups=2).initialize(1)
    bound = 1 / np.sqrt(4 * 9)
    for parameter in (conv.weight, conv.bias):
        assert 0.9 * bound < np.abs(parameter.data).max() <= bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_keeps_the_dtype(dtype):
    network = small_network().initialize(0, dtype)
    y = network(images(2, 3, 9, 9, dtype=dtype))
    y.sum().backward()
    assert y.dtype == dtype
    assert {p.grad.dtype.name for p in network.parameters()} == {dtype}


@pytest.mark.parametrize("method", ["auto", "direct", "im2col", "fft", "winograd", "winograd4x4"])
def test_float64_images_train_a_float32_network(method):
    """The computation is in float64, the gradients go into the float32 arrays of the optimizer."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3, method=method), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 4))
    network.initialize(1)
    optimizer = optim.SGD(network.parameters(), 0.1)
    gradients = {}
    for dtype in ("float64", "float32"):
        optimizer.zero_grad()
        nn.cross_entropy(network(images(5, 2, 6, 6, dtype=dtype)), np.arange(5) % 4).backward()
        gradients[dtype] = [p.grad.copy() for p in network.parameters()]
    for double, single in zip(*gradients.values(), strict=True):
        assert double.dtype == np.float32
        np.testing.assert_allclose(double, single, rtol=1e-3, atol=1e-5 * np.abs(single).max() + 1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_integer_images_are_computed_in_floats(dtype):
    x = np.random.default_rng(0).integers(0, 9, (2, 4, 6, 6)).astype(dtype)
    layers = [nn.Conv2d(4, 2, 3, padding=1, method=m).initialize(0) for m in ("direct", "im2col", "fft", "winograd")]
    layers += [nn.MaxPool2d(3, padding=1), nn.AvgPool2d(2), nn.BatchNorm2d(4, affine=False), nn.LocalResponseNorm(3)]
    for layer in [*layers, nn.LayerNorm((4, 6, 6), elementwise_affine=False)]:
        y = layer(x)
        assert y.dtype.kind == "f"
        np.testing.assert_allclose(y.data, layer(x.astype(y.dtype)).data, rtol=1e-6, atol=1e-6)


def test_the_order_of_memory_is_made_once():
    """A convolution leaves (height, channels, width, samples); what follows keeps it: the next one copies nothing."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.LocalResponseNorm(3), nn.Dropout(0.5))
    x = network(images(5, 3, 8, 8))
    assert x.data.transpose(2, 1, 3, 0).flags.c_contiguous


@pytest.mark.parametrize("method", ["direct", "im2col", "fft", "winograd", "winograd4x4", "auto"])
def test_method_by_name(method):
    conv = nn.Conv2d(16, 16, 3, padding=1, method=method).initialize(2)
    reference = nn.Conv2d(16, 16, 3, padding=1, method="direct").initialize(2)
    x = images(2, 16, 7, 9)
    np.testing.assert_allclose(conv(x).data, reference(x).data, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 8, 8), "layer conv1: got an input of shape (2, 1, 8, 8), needs 3 channels, got 1"),
        ((2, 3, 64), "layer conv1: got an input of shape (2, 3, 64), needs an input of four axes"),
        (
            (2, 3, 3, 2),
            "layer conv2: got an input of shape (2, 8, 2, 1), a kernel of 5 x 2 (dilated by 2 x 1) is larger",
        ),
        ((2, 3, 3, 2), "than the padded image of 4 x 1; with this padding images from 3 x 2 on would fit"),
    ],
)
def test_an_input_that_does_not_fit_names_the_layer(shape, message):
    with pytest.raises(InputError) as error:
        small_network()(images(*shape))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "Conv2d(3, 4, 3, ...): groups 2: must divide 3 input and 4 output"),
        (lambda: nn.Conv2d(-1, 4, 3), "Conv2d(-1, 4, ...): channels must be whole numbers from 0 on"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size 0: expected a whole number, at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, stride=2, method="winograd"), "cannot do stride 2 x 2 (it needs 1 x 1)"),
        (lambda: nn.Conv2d(3, 4, 5, method="winograd4x4"), "cannot do kernel 5 x 5 (it needs 3 x 3)"),
        (lambda: nn.Conv2d(3.5, 4, 3), "Conv2d(3.5, 4, ...): channels must be whole numbers from 0 on"),
        (lambda: nn.Conv2d(3, 4, 3, method=None), "unknown convolution method 'None'"),
        (lambda: nn.Conv2d(3, 4, True), "kernel_size True: expected a whole number, at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, method="magic"), "unknown convolution method 'magic'"),
        (lambda: nn.MaxPool2d(2, padding=2), "padding 2 with a window of 2: must be at most 1"),
        (lambda: nn.AvgPool2d((2, 0)), "kernel_size (2, 0): expected a whole number, at least 1"),
    ],
)
def test_arguments_that_do_not_fit(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_pooling_names_the_layer():
    network = nn.Sequential(pool5=nn.MaxPool2d(3, stride=2))
    with pytest.raises(InputError, match=r"layer pool5: got an input of shape \(1, 2, 2, 9\), a kernel of 3 x 3"):
        network(images(1, 2, 2, 9))


def test_description():
    conv = nn.Conv2d(4, 8, 3, stride=(1, 2), padding=1, groups=2, bias=False)
    assert conv.describe() == "4 -> 8, kernel 3 x 3, stride 1 x 2, padding 1, 2 groups, no bias"
    assert nn.MaxPool2d(3, 2).describe() == "window 3 x 3, stride 2 x 2"

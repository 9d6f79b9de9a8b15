"""The networks that are shipped: what they consist of, what they take, what they refuse."""

import numpy as np
import pytest

from parallel_dl import networks, nn
from parallel_dl.errors import InputError
from parallel_dl.networks import VGG, AlexNet, LeNet5

SMALL = [name for name in networks.NETWORKS if name.endswith("_small")]
FULL = {"lenet5": 61_706, "alexnet": 60_965_224, "alexnet_one_tower": 61_100_840, "vgg16": 138_357_544}


@pytest.mark.parametrize(("name", "parameters"), FULL.items())
def test_parameters_of_full_networks(name, parameters):
    network = networks.create(name)
    assert network.parameter_count() == parameters
    assert not any(parameter.is_filled for parameter in network.parameters())
    assert nn.output_shape(network, networks.NETWORKS[name].input_shape) == (networks.NETWORKS[name].classes,)


def names(network):
    return " ".join(network._modules)


ALEXNET = (
    "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
    "flatten dropout6 fc6 relu6 dropout7 fc7 relu7 fc8"
)
LENET5 = "conv1 tanh1 pool1 conv2 tanh2 pool2 flatten fc1 tanh3 fc2 tanh4 fc3"
VGG16 = (
    "conv1 relu1 conv2 relu2 pool1 conv3 relu3 conv4 relu4 pool2 conv5 relu5 conv6 relu6 conv7 relu7 pool3 "
    "conv8 relu8 conv9 relu9 conv10 relu10 pool4 conv11 relu11 conv12 relu12 conv13 relu13 pool5 "
    "flatten fc1 relu14 dropout1 fc2 relu15 dropout2 fc3"
)


def test_layer_names():
    assert names(networks.create("alexnet")) == names(networks.create("alexnet_small", (1, 8, 8), 10)) == ALEXNET
    assert names(networks.create("alexnet_one_tower")) == ALEXNET.replace("norm1 ", "").replace("norm2 ", "")
    assert names(networks.create("lenet5")) == names(networks.create("lenet5_small", (1, 8, 8), 10)) == LENET5
    assert names(networks.create("vgg16")) == VGG16


def test_sizes_in_alexnet():
    shapes = {passed.name: passed.output for passed in nn.layer_shapes(networks.create("alexnet"), (3, 224, 224))}
    assert shapes["conv1"] == (96, 55, 55)
    assert (shapes["pool1"], shapes["pool2"], shapes["pool5"]) == ((96, 27, 27), (256, 13, 13), (256, 6, 6))
    assert [networks.create("alexnet")._modules[f"conv{n}"].groups for n in range(1, 6)] == [1, 2, 1, 2, 2]


@pytest.mark.parametrize("name", SMALL)
def test_first_weights_keep_the_signal(name):
    """The last layer still sees differences between samples; hidden biases are 0, and no class is preferred much."""
    network = networks.create(name, (1, 28, 28), 10).initialize(3).eval()
    logits = network(np.random.default_rng(0).random((16, 1, 28, 28), np.float32)).data
    assert logits.std(axis=0).mean() > 0.01
    assert np.abs(logits).max() < 2
    biases = [p.data.any() for name, p in network.named_parameters() if name.endswith("bias")]
    assert biases == [False] * (len(biases) - 1) + [name != "lenet5_small"]  # (with ReLU, PyTorch's for the last layer)


def test_a_network_can_be_varied():
    narrow = AlexNet((1, 20, 20), 4, kernels=(4, 8, 8, 8, 4), hidden=(8, 6), conv1=(3, 1, 1), pool_padding=1, dropout=0)
    assert narrow(np.zeros((3, 1, 20, 20), np.float32)).shape == (3, 4)
    assert LeNet5((2, 16, 16), 3, kernels=(3, 5), hidden=(7,))(np.zeros((3, 2, 16, 16), np.float32)).shape == (3, 3)
    assert names(VGG((1, 8, 8), 3, blocks=((4, 1),), hidden=(), dropout=0)) == "conv1 relu1 pool1 flatten fc1"
    with pytest.raises(InputError, match="groups 3: must divide 96 input and 256 output channels"):
        AlexNet(towers=3)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "said"),
    [
        ("lenet5", (1, 8, 8), 10, "network lenet5: takes 1 x 28 x 28, not 1 x 8 x 8; try lenet5_small"),
        ("alexnet", (1, 224, 224), 10, "network alexnet: takes 3 x 224 x 224, not 1 x 224 x 224; try alexnet_small"),
        ("vgg16", (3, 32, 32), 10, "network vgg16: takes 3 x 224 x 224, not 3 x 32 x 32; try vgg_small"),
        ("lenet5", (784,), 10, "network lenet5: takes 1 x 28 x 28, not 784 features; try mlp"),
        ("lenet5", (1, 28, 28), 11, "network lenet5: has 10 classes, not 11; try lenet5_small"),
        ("lenet5_small", (1, 3, 8), 10, "images of 3 x 8 are too small: images from 4 x 4 on would fit"),
        (
            "vgg_small",
            (3, 32, 2),
            10,
            "network vgg_small: images of 32 x 2 are too small: images from 4 x 4 on would fit",
        ),
        ("alexnet_small", (64,), 10, "takes images (channels, height, width), but a sample has 64 features; try mlp"),
        ("vgg_small", None, None, "network vgg_small: takes input shape and classes from the data; give both"),
        ("lenet", (1, 28, 28), 10, "unknown network 'lenet': did you mean 'lenet5'?"),
    ],
)
def test_what_does_not_fit(name, shape, classes, said):
    with pytest.raises(InputError) as error:
        networks.create(name, shape, classes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_fewer_classes_get_all_outputs():
    assert networks.create("lenet5", (1, 28, 28), 4).fc3.out_features == 10
    assert networks.create("lenet5_small", (1, 28, 28), 4).fc3.out_features == 4

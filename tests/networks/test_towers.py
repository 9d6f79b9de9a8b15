"""AlexNet's towers: groups of channels are two half networks that are joined at four layers only."""

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.networks import AlexNet, alexnet_small

# conv1: each half sees the whole image; conv2, conv4, conv5: its own tower; conv3 and fc6 to fc8: both towers
WITHIN = {"conv2", "conv4", "conv5"}
NETWORKS = {
    "small": (alexnet_small, (1, 8, 8)),
    "small, odd size": (alexnet_small, (2, 11, 7)),
    "full depth": (
        lambda shape, classes: AlexNet(shape, classes, kernels=(8, 16, 24, 16, 12), hidden=(20, 16)),
        (3, 224, 224),
    ),
}


def half(array, tower):
    """The filters (or units) of one tower: one half of the first axis."""
    middle = array.shape[0] // 2
    return array[:middle] if tower == 0 else array[middle:]


class HalfNetworks:
    """The same network by hand: every weight cut into the towers' halves, each half in a tape of its own."""

    def __init__(self, network):
        self.network = network
        self.weights = {
            name: [Tensor(half(p.data, tower).copy(), requires_grad=True) for tower in (0, 1)]
            for name, p in network.named_parameters()
        }

    def forward(self, x):
        towers, whole = [x, x], x
        for name, layer in self.network._modules.items():
            if isinstance(layer, nn.Flatten):  # channels come first: flattened halves are halves of what is flat
                towers = [layer(tower) for tower in towers]
            elif isinstance(layer, nn.Dropout):  # the mask is that of the whole
                whole = layer(ops.concatenate(*towers, axis=1))
                middle = whole.shape[1] // 2
                towers = [whole[:, :middle], whole[:, middle:]]
            elif isinstance(layer, nn.LocalResponseNorm):
                towers = [
                    ops.local_response_norm(tower, size=5, alpha=5e-4, beta=0.75, k=2.0, groups=1) for tower in towers
                ]
            elif isinstance(layer, nn.ReLU | nn.MaxPool2d):
                towers = [layer(tower) for tower in towers]
            else:
                if name != "conv1" and name not in WITHIN:
                    towers = [ops.concatenate(*towers, axis=1)] * 2
                towers = [self.apply(name, layer, tower, x) for tower, x in enumerate(towers)]
        return ops.concatenate(*towers, axis=1)

    def apply(self, name, layer, tower, x):
        weight, bias = self.weights[f"{name}.weight"][tower], self.weights[f"{name}.bias"][tower]
        if isinstance(layer, nn.Conv2d):
            return ops.conv2d(x, weight, bias, stride=layer.stride, padding=layer.padding, groups=1)
        return ops.linear(x, weight, bias)

    def gradient(self, name):
        return np.concatenate([weight.grad for weight in self.weights[name]])


def compared(network, shape):
    """Output and gradients of the network with groups, and of the half networks: {name: (ours, theirs)}."""
    network.initialize(5, "float64")
    random = np.random.default_rng(1)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.data[...] = 0.1 * random.standard_normal(parameter.shape)
    x, y = random.standard_normal((3, *shape)), np.array([0, 3, 2])
    halves = HalfNetworks(network)
    outputs = []
    for forward in (network, halves.forward):
        network.train().set_position(4, 0)  # dropout on, with the same masks
        output = forward(x)
        nn.cross_entropy(output, y).backward()
        outputs.append(output.data)
    return {"output": tuple(outputs)} | {
        name: (parameter.grad, halves.gradient(name)) for name, parameter in network.named_parameters()
    }


def distance(ours, theirs):
    """The largest difference, in units of the largest value."""
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_two_half_networks(name):
    create, shape = NETWORKS[name]
    results = compared(create(shape, 4), shape)
    assert len(results) == 1 + 2 * 8
    for what, (ours, theirs) in results.items():
        assert distance(ours, theirs) < 1e-12, what


def test_response_normalisation_over_both_towers_would_be_seen():
    network = alexnet_small((1, 8, 8), 4)
    network.norm1.groups = 1
    assert distance(*compared(network, (1, 8, 8))["conv1.weight"]) > 1e-6

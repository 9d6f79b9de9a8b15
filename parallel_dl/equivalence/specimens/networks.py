"""Specimens: small networks for `verify` alone, which together have the layers that the shipped networks lack.

Batch norm, layer norm, GELU, sigmoid, branches that are summed and concatenated, layers that are used twice, strides,
dilation, groups, global pooling, dropout over images, frozen layers, wide layers, a layer that only some samples
use. They take images (channels, height, width) of any size from 4 x 4 on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from parallel_dl import from_file, nn
from parallel_dl.autograd import Tensor
from parallel_dl.networks import NETWORKS, create


def residual(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Convolutions with a stride and with dilation, batch norm over images, a residual block, global pooling."""
    return nn.Sequential(
        conv1=nn.Conv2d(input_shape[0], 8, 3, stride=2, padding=1, bias=False),
        norm1=nn.BatchNorm2d(8),
        act1=nn.GELU(),
        block=nn.Branches(
            skip=nn.Identity(),
            deep=nn.Sequential(
                conv=nn.Conv2d(8, 8, 3, padding=2, dilation=2), norm=nn.BatchNorm2d(8), act=nn.Sigmoid()
            ),
        ),
        conv2=nn.Conv2d(8, 12, (3, 2), stride=(1, 2), padding=(1, 0)),
        act2=nn.Tanh(),
        pool=nn.GlobalAvgPool2d(),
        flatten=nn.Flatten(),
        norm2=nn.LayerNorm(12),
        fc1=nn.Linear(12, 9),
        act3=nn.GELU(),
        fc2=nn.Linear(9, classes),
    )


def inception(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Branches that are concatenated, a convolution of four groups, response norm, overlapping pooling, dropout."""
    channels, height, width = input_shape
    features = {
        "conv1": nn.Conv2d(channels, 8, 3, padding=1),
        "act1": nn.Tanh(),
        "mixed": nn.Branches(
            narrow=nn.Conv2d(8, 4, 1),
            wide=nn.Sequential(conv=nn.Conv2d(8, 6, 3, padding=1), act=nn.GELU()),
            pooled=nn.Sequential(pool=nn.MaxPool2d(3, 1, 1), conv=nn.Conv2d(8, 6, 1)),
            join="concatenate",
        ),
        "norm": nn.LocalResponseNorm(3, 0.5),
        "conv2": nn.Conv2d(16, 8, 3, stride=2, padding=1, groups=4),
        "act2": nn.Sigmoid(),
        "pool": nn.AvgPool2d(2, 1, 1),
    }
    shape: Sequence[int] = (channels, height, width)
    for layer in features.values():
        shape = nn.output_shape(layer, shape)
    return nn.Sequential(
        **features,
        flatten=nn.Flatten(),
        drop=nn.Dropout(0.3),
        fc1=nn.Linear(math.prod(shape), 12),
        act3=nn.Tanh(),
        fc2=nn.Linear(12, classes),
    )


def norms(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Fully connected: batch norm and layer norm, layers used twice in a residual block, two towers side by side."""
    again = nn.Sequential(fc=nn.Linear(12, 12), act=nn.GELU())
    return nn.Sequential(
        flatten=nn.Flatten(),
        fc1=nn.Linear(math.prod(input_shape), 12),
        norm1=nn.BatchNorm1d(12),
        act1=nn.Sigmoid(),
        block=nn.Branches(nn.Identity(), nn.Sequential(again, nn.Dropout(0.2), again)),
        norm2=nn.LayerNorm(12),
        fc2=nn.Linear(12, 10),
        act2=nn.Tanh(),
        towers=nn.Branches(nn.Linear(10, 5), nn.Sequential(nn.Linear(10, 4), nn.Tanh()), join="concatenate"),
        fc3=nn.Linear(9, classes),
    )


def local_norm(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Batch norm over each rank's own share, with running statistics that are averaged."""
    return nn.Sequential(
        conv1=nn.Conv2d(input_shape[0], 6, 3, padding=1),
        norm1=nn.BatchNorm2d(6, statistics="local"),
        act1=nn.Tanh(),
        pool=nn.AvgPool2d(2),
        conv2=nn.Conv2d(6, 5, 3, padding=1),
        norm2=nn.BatchNorm2d(5, statistics="local"),
        act2=nn.Sigmoid(),
        pool2=nn.GlobalAvgPool2d(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(5, classes),
    )


def changing(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Fully connected; its first layer is frozen, until the program of that name (`programs`) unfreezes it."""
    fc1 = nn.Linear(math.prod(input_shape), 11)
    for parameter in fc1.parameters():
        parameter.requires_grad = False
    return nn.Sequential(
        flatten=nn.Flatten(),
        fc1=fc1,
        act1=nn.Tanh(),
        fc2=nn.Linear(11, 10),
        act2=nn.GELU(),
        fc3=nn.Linear(10, 9),
        act3=nn.Tanh(),
        fc4=nn.Linear(9, classes),
    )


class Chosen(nn.Module):
    """y = x + [x_0 > 1.6] fc(x), for x (n, width): ranks without such a sample have no gradients for its weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        chosen = x.data[:, :1] > 1.6  # one or two of 13 samples, sometimes none
        return x + self.fc(x) * chosen.astype(x.data.dtype) if chosen.any() else x

    def output_shape(self, input_shape: Sequence[int]) -> Sequence[int]:
        return input_shape


def groups(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Five groups, dropout over images, response norm of an even size, equal branches, frozen and chosen layers."""
    features = {
        "conv1": nn.Conv2d(input_shape[0], 20, 3, padding=1),
        "act1": nn.Tanh(),
        "drop": nn.Dropout(0.2),
        "norm": nn.LocalResponseNorm(4, 0.5),
        "conv2": nn.Conv2d(20, 20, 3, padding=1, groups=5),
        "act2": nn.GELU(),
        "alike": nn.Branches(nn.Conv2d(20, 6, 1), nn.Conv2d(20, 6, 3, padding=1), join="concatenate"),
        "pool": nn.MaxPool2d(2),
    }
    shape = input_shape
    for layer in features.values():
        shape = nn.output_shape(layer, shape)
    fc1 = nn.Linear(math.prod(shape), 9)
    for parameter in fc1.parameters():
        parameter.requires_grad = False
    classifier = {"act3": nn.Tanh(), "norm2": nn.LayerNorm(9), "chosen": Chosen(9), "fc2": nn.Linear(9, classes)}
    return nn.Sequential(**features, flatten=nn.Flatten(), fc1=fc1, **classifier)


def rowwise(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Fully connected layers, layer norm and dropout along the last of several axes."""
    *axes, width = input_shape
    return nn.Sequential(
        fc1=nn.Linear(width, 6),
        act1=nn.Tanh(),
        norm1=nn.LayerNorm(6),
        drop=nn.Dropout(0.2),
        fc2=nn.Linear(6, 5),
        act2=nn.GELU(),
        flatten=nn.Flatten(),
        fc3=nn.Linear(math.prod(axes) * 5, 12),
        norm2=nn.LayerNorm(12),
        act3=nn.Tanh(),
        fc4=nn.Linear(12, classes),
    )


def broad(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Fully connected: weights of more than two of the tiles in which they are drawn, an activation used twice."""
    act = nn.Tanh()
    return nn.Sequential(
        flatten=nn.Flatten(),
        fc1=nn.Linear(math.prod(input_shape), 600),
        act1=act,
        fc2=nn.Linear(600, 8),
        act2=act,
        fc3=nn.Linear(8, classes),
    )


SPECIMENS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "residual": residual,
    "inception": inception,
    "norms": norms,
    "local_norm": local_norm,
    "changing": changing,
    "groups": groups,
    "rowwise": rowwise,
    "broad": broad,
}


def network_named(name: str, input_shape: Sequence[int], classes: int) -> nn.Module:
    """A specimen, or a shipped network; InputError, with the nearest name, for an unknown one."""
    if name in SPECIMENS:
        return SPECIMENS[name](input_shape, classes)
    return create(name, input_shape, classes)


def require_known(name: str) -> None:
    """Raises InputError for a network that is neither shipped nor a specimen, with the nearest name."""
    from_file.find("network", name, {**NETWORKS, **SPECIMENS})

"""The networks by name: plain serial programs, which know nothing of ranks.

To read in this order: mlp, lenet5, alexnet, vgg; images and initialization are what the last three share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallel_dl import from_file
from parallel_dl.errors import InputError, cut, number_of
from parallel_dl.networks.alexnet import AlexNet, alexnet_one_tower, alexnet_small
from parallel_dl.networks.lenet5 import LeNet5, lenet5_small
from parallel_dl.networks.mlp import MLP, mlp_deep
from parallel_dl.networks.vgg import VGG, vgg_small
from parallel_dl.nn import Module


@dataclass(frozen=True)
class Architecture:
    """A network we ship: the function that makes it, and what it is made for."""

    create: Callable[[Sequence[int], int], Module]
    """(input_shape, classes) -> network"""
    lr: float = 0.1
    """learning rate of SGD with momentum 0.9 that trains it"""
    lr_policy: str = "constant"
    """how the rate changes, one of `optim.rates`"""
    input_shape: tuple[int, ...] | None = None
    """the one it takes; None for a network that takes its input shape and classes from the data"""
    classes: int | None = None
    """how many there are, of which data may use fewer"""
    small: str | None = None
    """the name of its small version"""


NETWORKS: dict[str, Architecture] = {
    "mlp": Architecture(MLP),
    "mlp_deep": Architecture(mlp_deep, 0.02),
    "lenet5_small": Architecture(lenet5_small, 0.1, "cosine"),
    "alexnet_small": Architecture(alexnet_small, 0.02),
    "vgg_small": Architecture(vgg_small, 0.02),
    "lenet5": Architecture(LeNet5, 0.05, "cosine", (1, 28, 28), 10, "lenet5_small"),
    "alexnet": Architecture(AlexNet, 0.01, "constant", (3, 224, 224), 1000, "alexnet_small"),
    "alexnet_one_tower": Architecture(alexnet_one_tower, 0.001, "constant", (3, 224, 224), 1000, "alexnet_small"),
    "vgg16": Architecture(VGG, 0.001, "constant", (3, 224, 224), 1000, "vgg_small"),
}


def architecture(name: str) -> Architecture:
    """What we ship under this name, or, for FILE.py:NAME, what a user's own file has; else InputError."""
    found = from_file.find("network", name, NETWORKS)
    if isinstance(found, Architecture):
        return found
    return Architecture(lambda shape, classes: from_file.call("network", name, found, shape, classes, returns=Module))


def create(name: str, input_shape: Sequence[int] | None = None, classes: int | None = None) -> Module:
    """The network `name` for inputs (samples, *input_shape) and this many classes; its weights are not drawn yet.

    FILE.py:NAME is a user's own: what NAME(input_shape, classes) of that file returns.

    A full-size network has its own input shape and classes, and both may be left out: it gets all its outputs also for
    fewer classes. Raises InputError, which names the network and what would fit, for data that it cannot take.
    """
    shipped = architecture(name)
    if shipped.input_shape is None or shipped.classes is None:
        if input_shape is None or classes is None:
            raise InputError(f"network {name}: takes input shape and classes from the data; give both")
        try:
            network = shipped.create(tuple(input_shape), classes)
            if "_modules" not in vars(network):
                raise InputError(f"network {cut(name)}: its __init__ does not call super().__init__()")
            return network
        except InputError as error:
            if from_file.is_own(name):
                raise
            raise InputError(f"network {name}: {error.marked}{_instead(None, input_shape)}") from None
    if input_shape is not None and tuple(input_shape) != shipped.input_shape:
        instead = _instead(shipped.small, input_shape)
        raise InputError(f"network {name}: takes {_by(shipped.input_shape)}, not {_by(input_shape)}{instead}")
    if classes is not None and classes > shipped.classes:
        instead = _instead(shipped.small, shipped.input_shape)
        raise InputError(f"network {name}: has {number_of(shipped.classes, 'class')}, not {classes}{instead}")
    return shipped.create(shipped.input_shape, shipped.classes)


def _instead(small: str | None, input_shape: Sequence[int]) -> str:
    """Which network takes such an input."""
    name = small if len(input_shape) == 3 else "mlp"
    return f"; try {name}" if name else ""


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) if len(shape) > 1 else number_of(shape[0], "feature")


__all__ = [
    "MLP",
    "NETWORKS",
    "VGG",
    "AlexNet",
    "Architecture",
    "LeNet5",
    "alexnet_one_tower",
    "alexnet_small",
    "architecture",
    "create",
    "lenet5_small",
    "mlp_deep",
    "vgg_small",
]

"""The networks of the benchmarks as training steps: ours, PyTorch eager, and, for the MLPs, hand-written NumPy.

A network is a list of layers under the names that we share with PyTorch, so both sides build the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from parallel_dl import nn, optim

LR, MOMENTUM = 0.01, 0.9


@dataclasses.dataclass(frozen=True)
class Network:
    """Layers as (class name, arguments, keyword arguments), and the batch it is trained with."""

    name: str
    batch: int
    input_shape: tuple[int, ...]
    layers: tuple[tuple[str, tuple, dict[str, Any]], ...]
    repeats: int
    """steps that make a good median"""

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Random inputs (batch, *input_shape) and labels (batch,)."""
        random = np.random.default_rng(0)
        return random.standard_normal((self.batch, *self.input_shape), np.float32), random.integers(0, 10, self.batch)

    def ours(self) -> nn.Module:
        """The network of this package."""
        return nn.Sequential(*(getattr(nn, kind)(*args, **named) for kind, args, named in self.layers)).initialize(0)

    def torch(self) -> Any:
        """The same network in PyTorch."""
        import torch

        modules = [getattr(torch.nn, kind)(*args, **named) for kind, args, named in self.layers]
        return torch.nn.Sequential(*modules)

    @property
    def has_images(self) -> bool:
        """Whether PyTorch's memory formats make a difference."""
        return len(self.input_shape) == 3


def layer(kind: str, *arguments: Any, **named: Any) -> tuple[str, tuple, dict[str, Any]]:
    """A layer of a `Network`."""
    return kind, arguments, named


def mlp(widths: Sequence[int], batch: int, repeats: int) -> Network:
    """Fully connected layers of these widths with ReLU between them."""
    layers = []
    for before, after in pairwise(widths):
        layers += [layer("Linear", before, after), layer("ReLU")]
    return Network("MLP " + "-".join(map(str, widths)), batch, (widths[0],), tuple(layers[:-1]), repeats)


LARGE = mlp((784, 512, 512, 10), 128, 100)
SMALL = mlp((784, 128, 127, 126, 125, 124, 123, 10), 8, 600)
LENET = Network(
    "LeNet, 28x28",
    64,
    (1, 28, 28),
    (
        layer("Conv2d", 1, 6, 5, padding=2),
        layer("MaxPool2d", 2),
        layer("ReLU"),
        layer("Conv2d", 6, 16, 5),
        layer("MaxPool2d", 2),
        layer("ReLU"),
        layer("Flatten"),
        layer("Linear", 400, 120),
        layer("ReLU"),
        layer("Linear", 120, 84),
        layer("ReLU"),
        layer("Linear", 84, 10),
    ),
    100,
)


def _block(in_channels: int, out_channels: int, pool: bool) -> list[tuple[str, tuple, dict[str, Any]]]:
    layers = [layer("Conv2d", in_channels, out_channels, 3, padding=1), layer("ReLU")]
    return [*layers, layer("MaxPool2d", 2)] if pool else layers


STACK = Network(
    "conv stack 64-192-384-256-256, FC 1024, 32x32x3",
    32,
    (3, 32, 32),
    (
        *_block(3, 64, pool=True),
        *_block(64, 192, pool=True),
        *_block(192, 384, pool=False),
        *_block(384, 256, pool=False),
        *_block(256, 256, pool=True),
        layer("Flatten"),
        layer("Linear", 256 * 4 * 4, 1024),
        layer("ReLU"),
        layer("Linear", 1024, 10),
    ),
    7,
)


def our_step(network: Network) -> Callable[[], float]:
    """Forward, backward and SGD with momentum through the engine."""
    x, y = network.data()
    model = network.ours()
    optimizer = optim.SGD(model.parameters(), LR, momentum=MOMENTUM)

    def step() -> float:
        loss = nn.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def numpy_step(network: Network) -> Callable[[], float]:
    """An MLP by hand: what NumPy costs without an engine."""
    x, y = network.data()
    weights = [p.data.copy() for p in network.ours().parameters()]
    velocities = [np.zeros_like(w) for w in weights]
    rows, ones = np.arange(len(x)), np.ones(len(x), np.float32)
    depth = len(weights) // 2

    def step() -> float:
        inputs = [x]
        for number in range(depth):
            z = inputs[-1] @ weights[2 * number].T
            z += weights[2 * number + 1]
            if number < depth - 1:
                np.maximum(z, 0, out=z)
            inputs.append(z)
        z = inputs.pop()
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        s = e.sum(axis=1, keepdims=True)
        loss = float((np.log(s).sum() - z[rows, y].sum()) / len(x))
        g = e / (s * len(x))
        g[rows, y] -= np.float32(1 / len(x))
        gradients: list[np.ndarray] = []
        for number in reversed(range(depth)):
            gradients[:0] = [g.T @ inputs[number], ones @ g]
            if number:
                g = g @ weights[2 * number]
                g *= inputs[number] > 0
        for w, v, d in zip(weights, velocities, gradients):
            v *= MOMENTUM
            v += d
            w -= LR * v
        return loss

    return step


def torch_step(network: Network, channels_last: bool = False) -> Callable[[], float]:
    """The same in PyTorch eager on one thread, in one of its two memory formats for images."""
    import torch

    torch.set_num_threads(1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, y = map(torch.from_numpy, network.data())
    return torch_training(network.torch().to(memory_format=layout), x.contiguous(memory_format=layout), y)


def torch_training(model: Any, x: Any, y: Any) -> Callable[[], float]:
    """One step of a PyTorch model, eager or DistributedDataParallel, on its tensors x and y."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)

    def step() -> float:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step

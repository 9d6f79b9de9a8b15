"""The networks of the benchmarks as training steps: ours, hand-written NumPy, and PyTorch eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from parallel_dl import nn, optim

LARGE = ((784, 512, 512, 10), 128)
SMALL = ((784, 128, 127, 126, 125, 124, 123, 10), 8)
LR, MOMENTUM = 0.01, 0.9


def data(widths: Sequence[int], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs (batch, widths[0]) and labels (batch,)."""
    random = np.random.default_rng(0)
    return random.standard_normal((batch, widths[0]), np.float32), random.integers(0, widths[-1], batch)


def network(widths: Sequence[int]) -> nn.Module:
    """Fully connected layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).initialize(0)


def our_step(widths: Sequence[int], batch: int) -> Callable[[], float]:
    """Forward, backward and SGD with momentum through the engine."""
    x, y = data(widths, batch)
    model = network(widths)
    optimizer = optim.SGD(model.parameters(), LR, momentum=MOMENTUM)

    def step() -> float:
        loss = nn.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def numpy_step(widths: Sequence[int], batch: int) -> Callable[[], float]:
    """The same by hand: what NumPy costs without an engine."""
    x, y = data(widths, batch)
    weights = [p.data.copy() for p in network(widths).parameters()]
    velocities = [np.zeros_like(w) for w in weights]
    rows, ones = np.arange(batch), np.ones(batch, np.float32)
    depth = len(widths) - 1

    def step() -> float:
        inputs = [x]
        for layer in range(depth):
            z = inputs[-1] @ weights[2 * layer].T
            z += weights[2 * layer + 1]
            if layer < depth - 1:
                np.maximum(z, 0, out=z)
            inputs.append(z)
        z = inputs.pop()
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        s = e.sum(axis=1, keepdims=True)
        loss = float((np.log(s).sum() - z[rows, y].sum()) / batch)
        g = e / (s * batch)
        g[rows, y] -= np.float32(1 / batch)
        gradients: list[np.ndarray] = []
        for layer in reversed(range(depth)):
            gradients[:0] = [g.T @ inputs[layer], ones @ g]
            if layer:
                g = g @ weights[2 * layer]
                g *= inputs[layer] > 0
        for w, v, d in zip(weights, velocities, gradients):
            v *= MOMENTUM
            v += d
            w -= LR * v
        return loss

    return step


def torch_step(widths: Sequence[int], batch: int) -> Callable[[], float]:
    """The same in PyTorch eager on one thread."""
    import torch

    torch.set_num_threads(1)
    return torch_training(torch_network(widths), *map(torch.from_numpy, data(widths, batch)))


def torch_training(model, x, y) -> Callable[[], float]:
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


def torch_network(widths: Sequence[int]):
    """The same network in PyTorch."""
    import torch

    layers: list[torch.nn.Module] = []
    for before, after in pairwise(widths):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])

"""First weights with which deep stacks train: the scale of a signal survives each layer."""

from __future__ import annotations

import math
from collections.abc import Iterable

from parallel_dl import nn
from parallel_dl.nn.initializers import constant, kaiming_uniform


def initialize_for_relu(layers: Iterable[nn.Module]) -> None:
    """Declares He's first weights for each Conv2d and Linear but the last: variance 2 / fan in, and biases 0.

    (He, Zhang, Ren and Sun 2015, arXiv 1502.01852, section 2.2.) ReLU halves the mean square of a signal, and these
    weights double it again. With PyTorch's default, variance 1 / (3 fan in), a layer with ReLU leaves a sixth: deep
    networks hardly begin to learn. No ReLU follows the last layer: it keeps that default, with which no class is
    preferred at the start.
    """
    _initialize(_weighted(layers)[:-1], math.sqrt(2.0))


def initialize_for_tanh(layers: Iterable[nn.Module]) -> None:
    """Declares LeCun's first weights for each Conv2d and Linear: variance 1 / fan in, and biases 0.

    (LeCun, Bottou, Orr and Müller 1998, "Efficient BackProp", section 4.6.)
    """
    _initialize(_weighted(layers), 1.0)


def _weighted(layers: Iterable[nn.Module]) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]


def _initialize(layers: Iterable[nn.Conv2d | nn.Linear], gain: float) -> None:
    for layer in layers:
        fan_in = math.prod(layer.weight.shape[1:])  # of a convolution (channels / groups) ky kx
        layer.weight.initializer = kaiming_uniform(fan_in, gain)
        if layer.bias is not None:
            layer.bias.initializer = constant(0.0)

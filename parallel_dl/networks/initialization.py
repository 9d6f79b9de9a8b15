"""First weights with which deep stacks of ReLU train."""

from __future__ import annotations

import math
from collections.abc import Iterable

from parallel_dl import nn
from parallel_dl.nn.initializers import constant, kaiming_uniform


def initialize_for_relu(layers: Iterable[nn.Module]) -> None:
    """Declares He's initial values for each Conv2d and Linear: variance 2 / fan in, so that ReLU keeps the scale.

    (He, Zhang, Ren and Sun 2015, arXiv 1502.01852, section 2.2; biases 0.) With PyTorch's default, variance
    1 / (3 fan in), each layer with ReLU shrinks the variance to a sixth: deep networks hardly begin to learn.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = math.prod(layer.weight.shape[1:])  # of a convolution (channels / groups) ky kx
            layer.weight.initializer = kaiming_uniform(fan_in)
            if layer.bias is not None:
                layer.bias.initializer = constant(0.0)

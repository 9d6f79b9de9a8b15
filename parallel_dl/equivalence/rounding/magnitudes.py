"""What rounding errors are judged against: the sum of the magnitudes of all that was added up to a value.

A gradient may be zero in theory (terms that cancel) while its computed value is noise; relative to the value itself
two such results differ by 100 %, relative to the terms by 1e-16. The optimizer's rule, applied to magnitudes with all
signs positive, carries those sums on to its state and to the weights.
"""

from __future__ import annotations

import math

import numpy as np

from parallel_dl.nn import BatchNorm, Module
from parallel_dl.optim import Optimizer

Arrays = dict[str, np.ndarray]


class Magnitudes:
    """Follows one optimizer, update by update, with magnitudes in place of values."""

    def __init__(self, network: Module, optimizer: Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        self.names = [names[id(parameter)] for parameter in optimizer.parameters]
        self.weights: Arrays = {name: np.abs(p.data).astype(float) for name, p in network.named_parameters()}
        self.state: Arrays = {
            f"{name} {key}": np.zeros(self.weights[name].shape)
            for name, options in zip(self.names, optimizer.options_of())
            for key in optimizer.state_of(options)
        }

    def update(self, gradients: Arrays, clipped: float = 1.0) -> dict[str, Arrays]:
        """After the optimizer's step with gradients of these magnitudes: those of its state, of weights and buffers.

        `clipped` is the factor by which the gradients were shortened. It, and LARS's ratios, are taken as they were.
        """
        rule = self.optimizer
        for number, (name, options, count) in enumerate(zip(self.names, rule.options_of(), rule.updates_of())):
            if name not in gradients or not count:  # without a gradient nothing is updated
                continue
            rate = float(options["lr"](rule.updates - 1)) if callable(options["lr"]) else options["lr"]
            state = {key: self.state[f"{name} {key}"] for key in rule.state_of(options)}
            rule._magnitudes(number, options, rate, self.weights[name], clipped * gradients[name], state)
        return {
            "state": {name: array.copy() for name, array in self.state.items()},
            "weights": {name: array.copy() for name, array in self.weights.items()} | buffer_magnitudes(self.network),
        }


def buffer_magnitudes(network: Module) -> Arrays:
    """Of every buffer as it is now. Batch norm's: mean |x| <= sqrt(mean x^2), and mean x^2 = variance + mean^2."""
    magnitudes = {name: np.abs(array).astype(float) for name, array in network.named_buffers()}
    for prefix, layer in network.named_modules():
        if isinstance(layer, BatchNorm):
            squares = layer.running_var.astype(float) + layer.running_mean.astype(float) ** 2
            prefix = f"{prefix}." if prefix else ""
            magnitudes |= {f"{prefix}running_mean": np.sqrt(squares), f"{prefix}running_var": squares}
    return magnitudes


def scale(magnitudes: np.ndarray) -> np.ndarray:
    """The magnitudes, but at least a thousandth of the tensor's largest: terms passed on by others count, too."""
    largest = float(magnitudes.max()) if magnitudes.size else 0.0
    return np.maximum(magnitudes, 1e-3 * largest if math.isfinite(largest) else 0.0)

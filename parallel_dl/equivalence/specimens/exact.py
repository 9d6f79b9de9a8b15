"""Whole numbers, of which every sum is exact: then two runs are equal to the last bit, or they compute another thing.

Weights, samples and targets are small integers; what is divided by is a power of two: batch size, learning rate, keep
probability of dropout, pooling windows. Every value, and every sum on the way to it, must stay below 2^53, which is
checked with magnitudes: a run of the same network with all signs positive, in which nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parallel_dl import nn, optim
from parallel_dl.autograd import Tensor, ops
from parallel_dl.equivalence.rounding.passing import watched
from parallel_dl.equivalence.runs.record import Experiment
from parallel_dl.errors import InputError
from parallel_dl.nn import Module

LIMIT = 2.0**53
RATE = 2.0**-5
_EXACT = (nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Branches, nn.Sequential)


def exact_experiment(
    build: Callable[[], Module], input_shape: Sequence[int], batch_size: int = 16, seed: int = 0
) -> Experiment:
    """One step of SGD on the sum of squares, of whole numbers; InputError for what would round.

    That is a layer other than linear ones, ReLU, pooling and dropout, a batch size that is not a power of two, and a
    network in which no whole numbers stay below 2^53.
    """
    if not _is_power_of_two(batch_size):
        raise InputError("`exact` divides by it; expected a power of two", "batch_size", batch_size)
    network = build()
    _require_exact(network, input_shape)
    random = np.random.default_rng(seed)
    samples = 2 * batch_size
    x = random.integers(-2, 3, (samples, *input_shape)).astype(float)
    y = random.integers(-2, 3, (samples, *nn.output_shape(network, input_shape))).astype(float)
    largest = math.inf
    for inputs in (math.inf, 8, 4, 2, 1):  # of each neuron, in the mean, whose weight is not zero
        prepare = _whole_numbers(inputs, seed)
        what = Experiment(
            build, x, y, lambda p: optim.SGD(p, RATE), batch_size, 1, seed=seed, loss=nn.mse, prepare=prepare
        )
        bound = largest_value(what)
        largest = min(largest, bound)
        if bound < LIMIT and _is_alive(what):
            return what
    if largest < LIMIT:
        raise InputError("`exact`: too many gradients are zero with few weights; try another `seed`")
    raise InputError(f"`exact`: values of up to {largest:.1e} do not stay below 2^53: the network is too deep or wide")


def _is_power_of_two(number: float) -> bool:
    return number > 0 and math.frexp(number)[0] == 0.5


def _require_exact(network: Module, input_shape: Sequence[int]) -> None:
    for passed in nn.layer_shapes(network, input_shape):
        divisor = _divisor(passed)
        if divisor == 1 and not isinstance(passed.layer, (*_EXACT, nn.AvgPool2d, nn.GlobalAvgPool2d, nn.Dropout)):
            raise InputError(
                f"`exact`: layer {passed.name} ({type(passed.layer).__name__}) rounds, so sums are not exact; "
                "use layers that do not round, or verify without `exact`"
            )
        if not _is_power_of_two(divisor):
            raise InputError(f"`exact`: {passed.name} divides by {divisor:g}; expected a power of two")


def _divisor(passed: nn.LayerShape) -> float:
    """What a layer divides by: the pixels of a window, the probability to be kept; 1 where it does not."""
    layer = passed.layer
    if isinstance(layer, nn.AvgPool2d):
        return float(math.prod(layer.kernel_size))
    if isinstance(layer, nn.GlobalAvgPool2d):
        return float(math.prod(passed.input[1:]))
    return 1 - layer.p if isinstance(layer, nn.Dropout) and layer.p < 1 else 1.0


def _whole_numbers(inputs: float, seed: int) -> Callable[[Module], None]:
    largest = 2 if inputs > 8 else 1

    def prepare(network: Module) -> None:
        random = np.random.default_rng(seed + 1)
        for parameter in network.parameters():
            share = inputs / max(1, math.prod(parameter.shape[1:]))
            values = random.integers(-largest, largest + 1, parameter.shape)
            parameter.data[...] = values * (random.random(parameter.shape) < share)

    return prepare


def largest_value(experiment: Experiment) -> float:
    """A bound on every value of the experiment's first step, and on every sum on the way to it.

    The same network with all signs positive: where signs cancel or a maximum is taken, here is a sum.
    """
    network = experiment.build().initialize(experiment.seed, experiment.dtype)
    assert experiment.prepare is not None
    experiment.prepare(network)
    for parameter in network.parameters():
        parameter.data[...] = np.abs(parameter.data)
    values: list[np.ndarray] = []

    def keep(layer: Module, arguments: tuple[Any, ...], y: Any) -> Any:
        values.append(y.data if isinstance(y, Tensor) else y)
        return watched(y, seen=values.append) if isinstance(y, Tensor) else y

    for _, layer in network.named_modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.__dict__["forward"] = _sum_of_window(layer)
        elif isinstance(layer, nn.Dropout) and layer.p < 1:
            layer.__dict__["forward"] = _all_kept(layer)
        layer.register_forward_hook(keep)
    y = network.train()(np.abs(experiment.x))
    # of the sum over all samples, before it is divided
    nn.mse(y, -np.abs(experiment.y), 1).backward()
    values += [p.grad for p in network.parameters() if p.grad is not None]
    squares = float(((y.data + np.abs(experiment.y)) ** 2).sum())
    largest = max([float(np.abs(array).max(initial=0.0)) for array in values] + [squares])
    # everything is a multiple of 1 / what was divided by: rate, batch, windows (dropout multiplies by whole numbers)
    windows = math.prod(max(1.0, _divisor(passed)) for passed in nn.layer_shapes(network, experiment.x.shape[1:]))
    return largest * experiment.batch_size / RATE * windows


def _is_alive(experiment: Experiment) -> bool:
    """Whether all weights get a gradient: of zeros everything is equal."""
    network = experiment.build().initialize(experiment.seed, experiment.dtype)
    assert experiment.prepare is not None
    experiment.prepare(network)
    nn.mse(network.train().set_position(0)(experiment.x), experiment.y, 1).backward()
    return all(p.grad is not None and p.grad.any() for p in network.parameters() if p.requires_grad)


def _sum_of_window(layer: nn.MaxPool2d) -> Callable[[Any], Any]:
    def forward(x: Any) -> Any:
        mean = ops.avg_pool2d(x, kernel=layer.kernel_size, stride=layer.stride, padding=layer.padding)
        return ops.multiply(mean, float(math.prod(layer.kernel_size)))

    return forward


def _all_kept(layer: nn.Dropout) -> Callable[[Any], Any]:
    return lambda x: x if not layer.p else ops.multiply(x, 1 / (1 - layer.p))

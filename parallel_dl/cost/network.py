"""A network's layers with their costs, and the totals: works add up, and so do depths along the longest chain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallel_dl import nn
from parallel_dl.cost.layers import operations
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import computes_as


def _ratio(a: int, b: int) -> float | None:
    return a / b if b else None


@dataclass(frozen=True)
class LayerCost:
    """One layer: what it holds, and what its forward pass does."""

    name: str
    kind: str
    """the name of its class"""
    output_shape: tuple[int, ...]
    """of one sample"""
    parameters: int
    """values in weights and biases; those of a layer used again are counted where it comes first"""
    multiply_adds: int
    """for one sample"""
    work: int
    """for all samples"""
    depth: int

    @property
    def activations(self) -> int:
        """Values in its output, for one sample."""
        return math.prod(self.output_shape)

    @property
    def average_parallelism(self) -> float | None:
        """W / D: how many processors could be busy on average; None for a layer without operations."""
        return _ratio(self.work, self.depth)

    @property
    def activations_per_weight(self) -> float | None:
        """Activations of one sample / parameters; None for a layer without parameters.

        What decides between data and model parallelism (Krizhevsky 2014, arXiv 1404.5997, section 2): convolutions have
        few weights and many activations, fully connected layers the reverse.
        """
        return _ratio(self.activations, self.parameters)


@dataclass(frozen=True)
class NetworkCost:
    """All layers, in order, and their totals for a forward pass of `samples` samples."""

    layers: list[LayerCost]
    samples: int
    depth: int
    """the longest chain: each layer waits for the one before it, the join of branches for the deepest of them"""

    @property
    def parameters(self) -> int:
        """Values in all weights and biases."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """For one sample."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def work(self) -> int:
        """For all samples."""
        return sum(layer.work for layer in self.layers)

    @property
    def average_parallelism(self) -> float | None:
        """W / D; None for a network without operations."""
        return _ratio(self.work, self.depth)


def cost_of(network: nn.Module, input_shape: Sequence[int], samples: int = 1) -> NetworkCost:
    """The cost of a forward pass of (samples, *input_shape).

    `network` is a Sequential or Branches of our layers, which may be such themselves; Branches stand behind their
    layers, for the join. Raises InputError for shapes that do not fit, for a module of another kind (it is named), and
    for fewer than one sample.
    """
    if samples < 1:
        raise InputError(f"samples {samples}: must be at least 1")
    layers: list[LayerCost] = []
    counted: set[int] = set()
    for passed in nn.layer_shapes(network, input_shape):
        done = operations(passed, samples)
        parameters = {id(one): one.size for one in passed.layer.parameters() if id(one) not in counted}
        counted |= parameters.keys()
        layers.append(
            LayerCost(
                name=passed.name,
                kind=type(passed.layer).__name__,
                output_shape=passed.output,
                parameters=sum(parameters.values()),
                multiply_adds=done.multiply_adds,
                work=done.work,
                depth=done.depth,
            )
        )
    return NetworkCost(layers, samples, _depth(network, iter(layers)))


def _depth(network: nn.Module, layers: Iterator[LayerCost]) -> int:
    """The longest chain through `network`, whose layers are the next ones, in the order of `nn.layer_shapes`."""
    if computes_as(network, nn.Sequential):
        return sum(_depth(layer, layers) for layer in network._modules.values())
    if computes_as(network, nn.Branches):
        return max(_depth(branch, layers) for branch in network._modules.values()) + next(layers).depth
    return next(layers).depth

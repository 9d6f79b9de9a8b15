"""A network's layers with their costs, and the totals: works add up, and so do depths along the longest chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parallel_dl import nn
from parallel_dl.cost.layers import operations
from parallel_dl.errors import InputError
from parallel_dl.nn.operations import longest_chain


def _ratio(a: int, b: int) -> float | None:
    return a / b if b else None


@dataclass(frozen=True)
class LayerCost:
    """One layer: its parameters, and the cost of its forward pass."""

    name: str
    kind: str
    """the name of its class"""
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    """both of one sample"""
    parameters: int
    """values in weights and biases; those of a reused layer are counted at its first use"""
    weights: int
    """values in weight matrices or kernels, without biases; counted as `parameters`, 0 without multiply-adds"""
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
    def inputs(self) -> int:
        """Values in its input, for one sample."""
        return math.prod(self.input_shape)

    @property
    def average_parallelism(self) -> float | None:
        """W / D: how many processors could be busy on average; None for a layer without operations."""
        return _ratio(self.work, self.depth)

    @property
    def activations_per_weight(self) -> float | None:
        """Activations of one sample / parameters; None for a layer without parameters.

        This decides between data and model parallelism (Krizhevsky 2014, arXiv 1404.5997, section 2): convolutions have
        few weights and many activations, fully connected layers the reverse.
        """
        return _ratio(self.activations, self.parameters)

    @property
    def threshold_batch(self) -> float | None:
        """The batch below which splitting the layer moves fewer values than data parallelism; None without weights.

        What each of P ranks sends in one step, by ring algorithms, for |w| weights, a global batch of B samples, and
        |x| and |y| values of one sample in input and output:

            data parallelism    2 (P-1)/P |w|           all-reduce of the weights' gradient
            split outputs       (P-1)/P B (|x| + |y|)   all-gather of y forward, reduce-scatter of x's gradient backward

        They are equal at B = 2|w| / (|x| + |y|) for any P; for a fully connected layer, that is 2 Fin Fout / (Fin +
        Fout). Only the volume is counted: no latency, no overlap with computation, no biases, and the groups of a
        convolution are not exploited. With an all-reduce of x's gradient, it is 2|w| / (2|x| + |y|).
        """
        return _ratio(2 * self.weights, self.inputs + self.activations) if self.weights else None

    def choice(self, batch: int) -> str | None:
        """The parallelism that moves fewer values at this global batch; None without weights.

        It is "model" below the threshold, and "data" from it on.
        """
        if self.threshold_batch is None:
            return None
        return "model" if batch < self.threshold_batch else "data"


@dataclass(frozen=True)
class NetworkCost:
    """All layers, in order, and their totals for a forward pass of `samples` samples."""

    layers: list[LayerCost]
    samples: int
    depth: int
    """the longest chain: each layer waits for the previous one, a join for its deepest branch"""

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

    `network` is a Sequential or Branches of layers, which may be such themselves; Branches come after their layers,
    for the join. Raises InputError for shapes that do not fit, for a module of another kind (it is named), and
    for fewer than one sample.
    """
    if samples < 1:
        raise InputError(f"samples {samples}: must be at least 1")
    layers: list[LayerCost] = []
    counted: set[int] = set()
    for passed in nn.layer_shapes(network, input_shape):
        done = operations(passed)
        parameters = [one for one in passed.layer.parameters() if id(one) not in counted]
        counted |= set(map(id, parameters))
        # those that multiply inputs: normalisations have weights, too, but nothing that is worth moving
        matrices = [one for one in parameters if len(one.shape) > 1] if done.multiply_adds else []
        layers.append(
            LayerCost(
                name=passed.name,
                kind=type(passed.layer).__name__,
                input_shape=passed.input,
                output_shape=passed.output,
                parameters=sum(one.size for one in parameters),
                weights=sum(one.size for one in matrices),
                multiply_adds=done.multiply_adds,
                work=done.work * samples,
                depth=done.depth(samples),
            )
        )
    return NetworkCost(layers, samples, longest_chain(network, (layer.depth for layer in layers)))

"""The shapes of what flows through a network, from its layers alone: nothing is computed, no weight is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parallel_dl.errors import InputError
from parallel_dl.nn.branches import Branches
from parallel_dl.nn.convolution import AvgPool2d, Conv2d, GlobalAvgPool2d, MaxPool2d
from parallel_dl.nn.layers import GELU, Dropout, Flatten, Identity, Linear, ReLU, Sequential, Sigmoid, Tanh
from parallel_dl.nn.module import Module
from parallel_dl.nn.normalization import BatchNorm, BatchNorm1d, BatchNorm2d, LayerNorm, LocalResponseNorm

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Input:
    """One sample, as far as layers look at it to refuse it: (1, *shape of the sample)."""

    shape: Shape


def _same(layer: Any, x: _Input) -> Shape:
    return x.shape


def _checked(layer: Any, x: _Input) -> Shape:
    layer.require(x)
    return x.shape


def _flatten(layer: Flatten, x: _Input) -> Shape:
    return 1, math.prod(x.shape[1:])


def _linear(layer: Linear, x: _Input) -> Shape:
    layer.require(x)
    return *x.shape[:-1], layer.out_features


def _convolution(layer: Conv2d, x: _Input) -> Shape:
    return layer.geometry(x).out_shape


def _pooling(layer: Any, x: _Input) -> Shape:
    vertical, horizontal = layer.windows(x)
    return *x.shape[:2], vertical.out, horizontal.out


def _global_pooling(layer: GlobalAvgPool2d, x: _Input) -> Shape:
    layer.require(x)
    return *x.shape[:2], 1, 1


# kind of layer -> function (layer, input) to the shape of the result, both with an axis of one sample in front
RULES: dict[type[Module], Callable[[Any, _Input], Shape]] = {
    Linear: _linear,
    Conv2d: _convolution,
    MaxPool2d: _pooling,
    AvgPool2d: _pooling,
    GlobalAvgPool2d: _global_pooling,
    Flatten: _flatten,
    **dict.fromkeys((LocalResponseNorm, BatchNorm, BatchNorm1d, BatchNorm2d, LayerNorm), _checked),
    **dict.fromkeys((ReLU, Tanh, Sigmoid, GELU, Dropout, Identity), _same),
}


@dataclass(frozen=True)
class LayerShape:
    """One layer on the way through a network, with the shapes of one sample before and behind it."""

    name: str
    layer: Module
    input: Shape
    output: Shape


def layer_shapes(network: Module, input_shape: Sequence[int], name: str = "") -> Iterator[LayerShape]:
    """The layers that a sample (*input_shape) passes, in order; a Sequential in a Sequential is passed through.

    Of Branches come the layers of each branch, one branch after the other, and then the Branches itself, which stands
    for the join: its input is that of the branches.

    `name` is the network's own. Raises InputError for shapes that do not fit, and for a module that is neither one of
    our layers nor a Sequential or Branches of them: what it computes cannot be seen from outside.
    """
    yield from _passing(network, tuple(input_shape), name)


def _passing(network: Module, shape: Shape, name: str) -> Generator[LayerShape, None, Shape]:
    """As `layer_shapes`; returns the shape behind the last of them."""
    if computes_as(network, Sequential):
        for child, layer in network._modules.items():
            shape = yield from _passing(layer, shape, _below(name, child))
        return shape
    x = _Input((1, *shape))
    if isinstance(network, Branches) and computes_as(network, Branches):
        outputs = []
        for child, branch in network._modules.items():
            output = yield from _passing(branch, shape, _below(name, child))
            outputs.append((1, *output))
        behind = network.joined_shape(x, outputs)
    else:
        behind = RULES[require_kind(network, RULES, name)](network, x)
    yield LayerShape(name, network, shape, behind[1:])
    return behind[1:]


def _below(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def output_shape(network: Module, input_shape: Sequence[int]) -> Shape:
    """The shape of one sample's result, without the axis of samples; InputError as in `layer_shapes`."""
    shape = tuple(input_shape)
    for passed in layer_shapes(network, shape):
        shape = passed.output
    return shape


def computes_as(module: Module, kind: type[Module]) -> bool:
    """Whether it is of this kind, or of a class derived from it that has the same forward pass."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def require_kind(module: Module, kinds: dict[type[Module], Any], name: str = "") -> type[Module]:
    """The one of `kinds` that computes what `module` does; InputError, with its name, when there is none."""
    for kind in type(module).__mro__:
        if kind in kinds and computes_as(module, kind):
            return kind
    valid = ", ".join(sorted(kind.__name__ for kind in kinds if kind is not Branches))
    layer = f"layer {name}: " if name else ""
    raise InputError(
        f"{layer}what a {type(module).__name__} computes is not known here; valid are Sequential, Branches and {valid}"
    )

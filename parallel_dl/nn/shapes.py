"""The shapes of what flows through a network, from its layers alone: nothing is computed, no weight is drawn.

Of a layer of the user's own they are what its method `output_shape(input_shape)` says, both of one sample without the
axis of samples. Where there is none, a copy of the layer can be measured by a forward pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl.autograd import no_grad
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
    """One layer on the way through a network, with the shapes of one sample before and after it."""

    name: str
    layer: Module
    input: Shape
    output: Shape


def layer_shapes(
    network: Module, input_shape: Sequence[int], name: str = "", measure: bool = False
) -> Iterator[LayerShape]:
    """The layers that a sample (*input_shape) passes, in order; a Sequential in a Sequential is passed through.

    Of Branches come the layers of each branch, one branch after the other, and then the Branches itself, which stands
    for the join: its input is that of the branches.

    A module of another kind is one layer, with whatever is in it. Its method `output_shape(input_shape)` says what
    comes out; a module without it is refused, or with `measure` a copy of it takes a sample of zeros.

    `name` is the network's own. Raises InputError for shapes that do not fit, and for a module whose output is not
    known.
    """
    yield from _passing(network, tuple(input_shape), name, measure)


def _passing(network: Module, shape: Shape, name: str, measure: bool) -> Generator[LayerShape, None, Shape]:
    """As `layer_shapes`; returns the shape after the last of them."""
    if computes_as(network, Sequential):
        for child, layer in network._modules.items():
            shape = yield from _passing(layer, shape, _below(name, child), measure)
        return shape
    x = _Input((1, *shape))
    if isinstance(network, Branches) and computes_as(network, Branches):
        outputs = []
        for child, branch in network._modules.items():
            output = yield from _passing(branch, shape, _below(name, child), measure)
            outputs.append((1, *output))
        after = network.joined_shape(x, outputs)
    elif kind_among(network, RULES) is None and (measure or says_its_shape(network)):
        after = (1, *_own_shape(network, shape, name))
    else:
        after = RULES[require_kind(network, RULES, name)](network, x)
    yield LayerShape(name, network, shape, after[1:])
    return after[1:]


def _below(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def output_shape(network: Module, input_shape: Sequence[int], measure: bool = False) -> Shape:
    """The shape of one sample's result, without the axis of samples; `measure` and InputError as in `layer_shapes`."""
    shape = tuple(input_shape)
    for passed in layer_shapes(network, shape, measure=measure):
        shape = passed.output
    return shape


def says_its_shape(module: Module) -> bool:
    """Whether its class has a method output_shape."""
    return callable(getattr(type(module), "output_shape", None))


def _own_shape(layer: Any, shape: Shape, name: str) -> Shape:
    """What a layer of the user's own makes of a sample of this shape; InputError when it cannot be told."""
    kind, where = type(layer).__name__, f"layer {name}: " if name else ""
    if says_its_shape(layer):
        said = layer.output_shape(shape)
        if not isinstance(said, (tuple, list)) or not all(isinstance(n, (int, np.integer)) and n >= 0 for n in said):
            raise InputError(f"{where}{kind}.output_shape({shape}) gives {said!r}; valid is a tuple of lengths")
        return tuple(map(int, said))
    define = f"define output_shape(input_shape) in {kind}"
    sample = np.zeros((1, *shape), layer.path("")[1].dtype)
    probe = copy.deepcopy(layer).eval()  # the layer's own weights, buffers and counters stay as they are
    for _, module in probe.named_modules():
        module._before_forward.clear()
        module._after_forward.clear()
    try:
        with no_grad():
            found = tuple(probe(sample).shape)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where}{kind} cannot be measured, a sample {sample.shape} of zeros ends with "
            f"{type(error).__name__}: {error}; {define}"
        ) from error
    if len(found) < 1 or found[0] != 1:
        raise InputError(f"{where}{kind} makes {found} of one sample {sample.shape}, not (1, ...); {define}")
    return found[1:]


def computes_as(module: Module, kind: type[Module]) -> bool:
    """Whether it is of this kind, or of a class derived from it that has the same forward pass."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def kind_among(module: Module, kinds: dict[type[Module], Any]) -> type[Module] | None:
    """The one of `kinds` that computes what `module` does; None when there is none."""
    return next((kind for kind in type(module).__mro__ if kind in kinds and computes_as(module, kind)), None)


def require_kind(module: Module, kinds: dict[type[Module], Any], name: str = "") -> type[Module]:
    """The one of `kinds` that computes what `module` does; InputError, with its name, when there is none."""
    found = kind_among(module, kinds)
    if found is not None:
        return found
    valid = ", ".join(sorted(kind.__name__ for kind in kinds if kind is not Branches))
    layer = f"layer {name}: " if name else ""
    raise InputError(
        f"{layer}what a {type(module).__name__} computes is not known here; valid are Sequential, Branches and {valid}"
        ", and layers that define output_shape(input_shape)"
    )

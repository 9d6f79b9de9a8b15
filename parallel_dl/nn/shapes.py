"""The shapes of the activations in a network, from its layers alone: nothing is computed, no weight is drawn.

A layer's method `output_shape(input_shape)` gives the shape of one sample's result, both without the sample axis. A
container's `layer_shapes` gives the order in which a sample passes its layers. A layer without `output_shape` can be
measured by a forward pass of a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl.autograd import no_grad
from parallel_dl.errors import InputError
from parallel_dl.nn.module import Module

Shape = tuple[int, ...]


class OneSample:
    """A batch of one sample, as far as a layer looks at it to refuse it: `shape` is (1, *that of the sample)."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape: Shape = (1, *shape)


@dataclass(frozen=True)
class LayerShape:
    """One layer of a network: its `name` there, and the `input` and `output` shapes of one sample."""

    name: str
    layer: Module
    input: Shape
    output: Shape


def layer_shapes(
    network: Module, input_shape: Sequence[int], name: str = "", measure: bool = False
) -> Iterator[LayerShape]:
    """The layers that a sample (*input_shape) passes, in order; a nested Sequential is replaced by its layers.

    For Branches, the layers of each branch come first, branch by branch, then the Branches itself, which represents the
    join: its input is that of the branches.

    Any other module counts as one layer, whatever it contains. Its method `output_shape(input_shape)` gives its output
    shape; a module without this method is refused or, with `measure`, a sample of zeros is passed through a copy.

    `name` is the network's own name. Raises InputError for shapes that do not fit, and for a module whose output shape
    is unknown.
    """
    layer: Any = network
    shape = tuple(input_shape)
    if says(layer, "layer_shapes"):
        yield from layer.layer_shapes(shape, name, measure)
        return
    if says(layer, "output_shape"):
        after = _said_shape(layer, shape, name)
    elif measure:
        after = _measured_shape(layer, shape, name)
    else:
        raise InputError(
            f"{_where(name)}what a {type(layer).__name__} computes is not known here; expected a layer of "
            "parallel_dl.nn, or one that defines output_shape(input_shape)"
        )
    yield LayerShape(name, layer, shape, after)


def output_shape(network: Module, input_shape: Sequence[int], measure: bool = False) -> Shape:
    """The shape of one sample's result, without the sample axis: the output of the network's last layer.

    `measure` and InputError are as in `layer_shapes`.
    """
    shape = tuple(input_shape)
    for passed in layer_shapes(network, shape, measure=measure):
        shape = passed.output
    return shape


def below(name: str, child: str) -> str:
    """The name of a module's child, from the module's own."""
    return f"{name}.{child}" if name else child


def says(module: Module, method: str) -> bool:
    """Whether its class has this method, and means by it the forward pass that the class has.

    A class that overrides the forward pass of another says anew what comes out and what it costs.
    """
    own = next((kind for kind in type(module).__mro__ if method in vars(kind)), None)
    if own is None or not callable(vars(own)[method]):
        return False
    forward = getattr(own, "forward", Module.forward)
    return forward is Module.forward or forward is type(module).forward


def _said_shape(layer: Any, shape: Shape, name: str) -> Shape:
    said = layer.output_shape(shape)
    if not isinstance(said, (tuple, list)) or not all(isinstance(n, (int, np.integer)) and n >= 0 for n in said):
        raise InputError(
            f"{_where(name)}{type(layer).__name__}.output_shape({shape}) gives {said!r}; expected a tuple of lengths"
        )
    return tuple(map(int, said))


def _measured_shape(layer: Module, shape: Shape, name: str) -> Shape:
    """What a copy of the layer makes of a sample of zeros; InputError, with what to define, when it makes nothing."""
    kind, where = type(layer).__name__, _where(name)
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


def _where(name: str) -> str:
    return f"layer {name}: " if name else ""


def computes_as(module: Module, kind: type[Module]) -> bool:
    """Whether it is of this kind, or of a class derived from it that has the same forward pass."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def kind_among(module: Module, kinds: dict[type[Module], Any]) -> type[Module] | None:
    """The one of `kinds` that computes what `module` does; None when there is none."""
    return next((kind for kind in type(module).__mro__ if kind in kinds and computes_as(module, kind)), None)

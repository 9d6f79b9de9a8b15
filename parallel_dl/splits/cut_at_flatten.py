"""A network cut at its first Flatten, for hybrids: data parallel before it, split from it on; from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import computes_as
from parallel_dl.splits.plan import Plan, plan


@dataclass(frozen=True)
class CutAtFlatten:
    """The layers before the first Flatten, and those from it on, of a Sequential; names are those of its children."""

    features: nn.Sequential
    classifier: nn.Sequential
    """what it is given is flat already, so its Flatten has nothing left to do"""
    values: int
    """in one sample's activations after the features: 9,216 in AlexNet"""

    def plan(self, ranks: int, splits: Mapping[str, str] | None = None, split_output: bool = True) -> Plan:
        """The plan of the classifier on this many ranks; InputError as in `splits.plan`."""
        return plan(self.classifier, (self.values,), ranks, splits, split_output, partial_input=True)


def cut_at_flatten(network: nn.Module, input_shape: Sequence[int]) -> CutAtFlatten:
    """Cuts a network for samples (*input_shape) in front of its first Flatten. Its layers keep their whole names.

    InputError unless it is a Sequential with a convolution before and a fully connected layer after the Flatten; for
    batch norm after it, whose statistics would be those of a part of the batch; and for a weight on both sides.
    """
    if not computes_as(network, nn.Sequential):
        raise InputError(f"`hybrid` owt: takes a Sequential, not a {type(network).__name__}")
    layers = network._modules
    names = list(layers)
    at = next((at for at, name in enumerate(names) if _has(layers[name], nn.Flatten)), len(names))
    before, after = names[:at], names[at:]
    if not any(_has(layers[name], nn.Conv2d) for name in before):
        raise InputError("`hybrid` owt: no convolution is before the first Flatten; use `dp` or `mp`")
    if not any(_has(layers[name], nn.Linear) for name in after):
        raise InputError("`hybrid` owt: no fully connected layer is after a Flatten; use `dp`")
    if not _begins_with_flatten(layers[after[0]]):
        raise InputError(f"`hybrid` owt: the first Flatten is inside {after[0]}, after other layers; put it first")
    for name in after:
        for inner, module in layers[name].named_modules(name):
            if isinstance(module, nn.BatchNorm):
                raise InputError(
                    f"`hybrid` owt: layer {inner} normalises over the batch, but layers after the Flatten get "
                    "sub-batches; use batch norm before the Flatten, or layer norm"
                )
    features = nn.Sequential(**{name: layers[name] for name in before})
    classifier = nn.Sequential(**{name: layers[name] for name in after})
    _require_own_weights(features, classifier)
    for part in (features, classifier):
        part.is_part_of(network)
    return CutAtFlatten(features, classifier, math.prod(nn.output_shape(features, input_shape)))


def _require_own_weights(features: nn.Module, classifier: nn.Module) -> None:
    before = {id(parameter): name for name, parameter in features.named_parameters()}
    for name, parameter in classifier.named_parameters():
        if id(parameter) in before:
            raise InputError(
                f"`hybrid` owt: {before[id(parameter)]} and {name} are one weight, used before and after the first "
                "Flatten; use `dp` or `mp`"
            )


def _has(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for _, module in layer.named_modules())


def _begins_with_flatten(layer: nn.Module) -> bool:
    while computes_as(layer, nn.Sequential) and layer._modules:
        layer = next(iter(layer._modules.values()))
    return isinstance(layer, nn.Flatten)

"""A network's layers in leaves: which dimension is cut how, and which layers cannot be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import computes_as
from parallel_dl.reproducible.leaves import Leaves

# element by element, or each channel by itself, in an order that does not depend on how many there are
_BY_CHANNEL = (nn.MaxPool2d, nn.AvgPool2d, nn.GlobalAvgPool2d, nn.LocalResponseNorm)
_SAME_LEAVES = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Dropout, nn.Identity, *_BY_CHANNEL)


@dataclass(frozen=True)
class LayerLeaves:
    """How the features or channels of a layer with weights are cut; splits cut it between these leaves only."""

    inputs: Leaves
    outputs: Leaves
    groups: int = 1
    is_alone: bool = True
    """whether the layer's weights are used in this place only"""


def cut_into_leaves(network: nn.Module, input_shape: Sequence[int]) -> None:
    """Says, in each layer of a network for samples (*input_shape), what its leaves are, before it is split.

    Raises InputError, naming the layer, for one whose sums cannot be cut so.
    """
    shapes = {passed.name: passed for passed in nn.layer_shapes(network, input_shape)}
    _walk(network, "", shapes, None, {})
    places = Counter(id(weight) for passed in shapes.values() for weight in passed.layer._parameters.values())
    for passed in shapes.values():
        leaves = getattr(passed.layer, "leaves", None)
        if leaves is not None and any(places[id(weight)] > 1 for weight in passed.layer._parameters.values()):
            passed.layer.leaves = replace(leaves, is_alone=False)


Cut = dict[int, tuple[str, LayerLeaves]]
"""id of a weight -> its first place, and its leaves there"""


def _walk(
    module: nn.Module, name: str, shapes: dict[str, nn.LayerShape], before: Leaves | None, cut: Cut
) -> Leaves | None:
    """Cuts the module and what is in it; the leaves of its input and of its result, None where any will do."""
    children = [(layer, f"{name}.{child}" if name else child) for child, layer in module._modules.items()]
    if computes_as(module, nn.Sequential):
        for layer, below in children:
            before = _walk(layer, below, shapes, before, cut)
        return before
    passed = shapes[name]
    if isinstance(module, nn.Branches) and computes_as(module, nn.Branches):
        first, *others = [_walk(branch, below, shapes, before, cut) for branch, below in children]
        return first if module.join == "sum" and all(leaves == first for leaves in others) else None
    if isinstance(module, nn.Linear):
        if len(passed.input) > 1:  # (..., features): leaves of the last axis, which is whole before and after it
            before = None
        after = Leaves.even(module.out_features)
        _cut(module, name, LayerLeaves(before or Leaves.even(module.in_features), after), cut)
        return after if len(passed.input) == 1 else None
    if isinstance(module, nn.Conv2d):
        after = Leaves.even(module.out_channels)
        _cut(module, name, LayerLeaves(before or Leaves.even(module.in_channels), after, module.groups), cut)
        return after
    if isinstance(module, nn.BatchNorm) and module.statistics == "global":
        leaves = before or Leaves.even(module.features)
        _cut(module, name, LayerLeaves(leaves, leaves), cut)
        return before
    if isinstance(module, nn.Flatten):
        return before and before.times(math.prod(passed.input[1:]))
    if isinstance(module, nn.LayerNorm):
        return None
    if isinstance(module, _SAME_LEAVES):
        return before
    why = "its statistics are those of each rank's share" if isinstance(module, nn.BatchNorm) else "they are not known"
    raise InputError(
        f"layer {name}: `reproducible` cannot add up a {type(module).__name__}'s sums in the same order in every "
        f"layout: {why}"
    )


def _cut(layer: nn.Module, name: str, leaves: LayerLeaves, cut: Cut) -> None:
    """Raises InputError for a layer, or weight, whose inputs have different leaves in two places."""
    for weight in (layer, *layer._parameters.values()):
        first, known = cut.setdefault(id(weight), (name, leaves))
        if leaves.inputs != known.inputs:
            raise InputError(
                f"{first} and {name} are one layer, but their inputs are cut into different leaves, "
                f"{known.inputs.sizes} and {leaves.inputs.sizes}: with `reproducible` use two layers"
            )
    layer.leaves = leaves

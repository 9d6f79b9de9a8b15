"""A network's layers and batches in leaves: what is cut how, and which layers cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parallel_dl import nn
from parallel_dl.datasets import Share
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import computes_as
from parallel_dl.partition import share
from parallel_dl.reproducible.convolution import ConvolutionInLeaves
from parallel_dl.reproducible.leaves import Leaves
from parallel_dl.reproducible.linear import LinearInLeaves
from parallel_dl.reproducible.reductions import layer_norm, pixel_mean

# element by element, or each channel by itself, in an order that does not depend on how many there are
_WITHOUT_SUMS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Dropout, nn.Identity)
_BY_CHANNEL = (nn.MaxPool2d, nn.AvgPool2d, nn.LocalResponseNorm)


def cut_into_leaves(network: nn.Module, input_shape: Sequence[int]) -> None:
    """Lets every layer of a network for samples (*input_shape) compute over leaves, in place, before it is split.

    Raises InputError, naming the layer, for one whose sums cannot be cut so.
    """
    shapes = {passed.name: passed for passed in nn.layer_shapes(network, input_shape)}
    _walk(network, "", shapes, None, {})


Cut = dict[int, tuple[str, LinearInLeaves | ConvolutionInLeaves]]
"""id of a layer -> its first place, and how it computes there"""


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
        module.leaves = LinearInLeaves(before or Leaves.even(module.in_features), after)
        _require_alike(module, name, cut)
        return after if len(passed.input) == 1 else None
    if isinstance(module, nn.Conv2d):
        after = Leaves.even(module.out_channels)
        settings = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        inputs = before or Leaves.even(module.in_channels)
        module.leaves = ConvolutionInLeaves(inputs, after, module.groups, settings)
        _require_alike(module, name, cut)
        return after
    if isinstance(module, nn.Flatten):
        return before and before.times(math.prod(passed.input[1:]))
    if isinstance(module, nn.GlobalAvgPool2d):
        module.leaves = pixel_mean
        return before
    if isinstance(module, nn.LayerNorm):
        module.leaves = layer_norm
        return None
    if isinstance(module, (*_WITHOUT_SUMS, *_BY_CHANNEL)):
        return before
    raise InputError(
        f"layer {name}: `reproducible` cannot add up a {type(module).__name__}'s sums in the same order in every "
        "layout: they are over the microbatch, or not known"
    )


def _require_alike(layer: nn.Linear | nn.Conv2d, name: str, cut: Cut) -> None:
    """Raises InputError for a layer whose inputs have different leaves in two places: it adds up in one way only."""
    first, known = cut.setdefault(id(layer), (name, layer.leaves))
    if layer.leaves.inputs != known.inputs:
        raise InputError(
            f"{first} and {name} are one layer, but their inputs are cut into different leaves, "
            f"{known.inputs.sizes} and {layer.leaves.inputs.sizes}: with `reproducible` use two layers"
        )


def leaf_of(part: Share, leaves: int, leaf: int) -> Share:
    """One of a rank's `leaves` of its share of a microbatch, as a share of its own; the first counts for all others."""
    own = share(len(part.x), leaves, leaf)
    of_all = part.of_all if leaf == 0 else 0
    return Share(part.x[own], part.y[own], part.first + own.start, part.size, of_all)

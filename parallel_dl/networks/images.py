"""What image networks have in common: images they take, and the values left for their fully connected layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from parallel_dl import nn
from parallel_dl.errors import InputError, number_of

_LARGEST = 4096  # the largest side that is tried to find the smallest image that fits


def channels_of(input_shape: Sequence[int]) -> int:
    """The channels of an image (channels, height, width); InputError for an input of another kind."""
    if len(input_shape) != 3:
        got = number_of(input_shape[0], "feature") if len(input_shape) == 1 else number_of(len(input_shape), "axis")
        raise InputError(f"takes images (channels, height, width), but a sample has {got}")
    return input_shape[0]


def values_after(layers: Iterable[nn.Module], input_shape: Sequence[int]) -> int:
    """Values per sample after `layers`; InputError, with the smallest image that fits, for one that is too small."""
    layers = list(layers)
    channels, height, width = input_shape
    if not _fits(layers, (channels, height, width)):
        least = next((side for side in range(1, _LARGEST) if _fits(layers, (channels, side, side))), None)
        valid = "no image fits" if least is None else f"images from {least} x {least} on would fit"
        raise InputError(f"images of {height} x {width} are too small: {valid}")
    return math.prod(_shape_after(layers, input_shape))


def _shape_after(layers: Iterable[nn.Module], shape: Sequence[int]) -> tuple[int, ...]:
    for layer in layers:
        shape = nn.output_shape(layer, shape)
    return tuple(shape)


def _fits(layers: Iterable[nn.Module], shape: Sequence[int]) -> bool:
    try:
        _shape_after(layers, shape)
    except InputError:
        return False
    return True

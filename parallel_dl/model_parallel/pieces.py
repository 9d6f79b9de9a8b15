"""Cutting a serial layer's weights: each rank keeps its piece, and draws no more than that."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.splits.rules import Piece

Layer = TypeVar("Layer", bound=nn.Module)


def become(layer: nn.Module, kind: type[Layer], **attributes: Any) -> Layer:
    """A module of another kind with the layer's weights and settings, and these attributes more."""
    new = kind.__new__(kind)
    new.__setstate__({**layer.__getstate__(), **_state(layer), "_parent": None})
    for name, value in attributes.items():
        setattr(new, name, value)
    return new


def separate(module: nn.Module, seen: set[int] | None = None) -> None:
    """Gives every place in the network a Sequential or Branches of its own, where one is used in several.

    What is in it stays the same, and keeps the name of the first place.
    """
    seen = set() if seen is None else seen
    for name, child in list(module._modules.items()):
        if child._modules and id(child) in seen:
            again = type(child).__new__(type(child))
            again.__dict__.update(_state(child))
            module.replace(name, again)
        seen.add(id(child))
        separate(module._modules[name], seen)


def _state(layer: nn.Module) -> dict[str, Any]:
    return {name: copy.copy(value) if isinstance(value, dict | list) else value for name, value in vars(layer).items()}


def cut(parameter: nn.Parameter, piece: Piece) -> nn.Parameter:
    """The piece as a parameter of its own. Values that are drawn already are kept, a copy of those in the piece."""
    if parameter.piece is not None:
        raise InputError("this network is split already: split a network that is whole")
    new = nn.Parameter(parameter.whole_shape, parameter.initializer, piece)
    new.requires_grad = parameter.requires_grad
    if parameter.is_filled:
        new.data = parameter.data[piece].copy()
    return new


def cut_buffer(layer: nn.Module, name: str, piece: Piece, pieces: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Keeps only the piece of the layer's buffer, and of the values that `initialize` resets it to.

    `pieces` has, by id, the whole buffers that were cut before, and what was cut from them: all places of one layer
    have one piece.
    """
    whole = layer._buffers[name]
    if id(whole) not in pieces:
        pieces[id(whole)] = whole, whole[piece].copy()
    layer._buffers[name] = pieces[id(whole)][1]
    object.__setattr__(layer, name, layer._buffers[name])
    layer._initial_buffers[name] = layer._initial_buffers[name][piece].copy()

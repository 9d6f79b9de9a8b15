"""Carries out a step of a plan: moves around local maths, on this rank's shards of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.errors import InputError
from parallel_dl.mesh import Path, Placement, Replicated
from parallel_dl.model_parallel.axis import ModelAxis
from parallel_dl.nn.shapes import computes_as
from parallel_dl.splits import Position, Step, is_along_samples
from parallel_dl.splits.normalization import summed_batch_norm
from parallel_dl.splits.rule import Finish, Local

Layer = TypeVar("Layer", bound=nn.Module)


def carry_out(step: Step, layer: nn.Module, axis: ModelAxis, name: str | None = None) -> None:
    """Makes `layer`, whose weights are already cut, compute this rank's part of the step.

    `name` is the name under which the ledger lists its calls; by default the layer's name when it is called.
    """
    division = step.division

    def moved(path: Path, x: Any, module: nn.Module) -> Any:
        return axis.make(path, x, name or name_of(module))

    if step.arrive:
        layer.register_forward_pre_hook(lambda module, arguments: (moved(step.arrive, arguments[0], module),))
    position = _position(step, axis, name or step.name)
    if division.local is not None:
        local = division.local
        layer.compute_by(lambda module, x: _by_rule(local, module, x, position, division.by))
    if is_along_samples(division.output) and not computes_as(layer, nn.Branches):  # its layers have steps of their own
        for _, inside in layer.named_modules():
            if isinstance(inside, nn.BatchNorm):
                inside.compute_by(lambda module, x: summed_batch_norm(module, x, position))
    if division.by:
        layer.register_forward_hook(lambda module, arguments, y: _require_said(step, axis.comm.rank, y))
    finish = division.finish
    if step.depart or finish is not None:
        layer.register_forward_hook(
            lambda module, arguments, y: _ended(finish, module, moved(step.depart, y, module), division.by)
        )


def _by_rule(local: Local, layer: nn.Module, x: Any, position: Position, by: str) -> Any:
    if not by:
        return local(layer, x, position)
    if layer.__dict__.get("_within_local"):
        raise InputError(f"{by}: its local maths calls the layer, which calls it again; use layer.forward(x)")
    layer.__dict__["_within_local"] = True
    try:
        with _told_of(by, "local maths"):
            return local(layer, x, position)
    finally:
        layer.__dict__["_within_local"] = False


@contextmanager
def _told_of(by: str, what: str) -> Iterator[None]:
    """What is raised inside, in the user's own maths, names the layer and the rule."""
    try:
        yield
    except InputError as error:
        raise error if by in str(error) else InputError(f"in the {what} of {by}: {error.marked}") from error
    except Exception as error:
        error.add_note(f"in the {what} of {by}")
        raise


def _require_said(step: Step, rank: int, y: Any) -> Any:
    """y, what a user's own rule has made; InputError unless it has the shape of the placement that the rule named."""
    shape = getattr(y, "shape", None)
    if shape is None:
        raise InputError(f"{step.division.by}: gives a value of type {type(y).__name__}; expected a Tensor")
    said = step.division.output.shape(rank, (max(1, *shape[:1]), *step.output))[1:]
    if tuple(shape[1:]) != said:
        raise InputError(
            f"{step.division.by}: rank {rank} has an output of shape {tuple(shape)}; by its placement, "
            f"{step.division.output}, it is (samples, {', '.join(map(str, said))})"
        )
    return y


def _ended(finish: Finish | None, layer: nn.Module, y: Any, by: str) -> Any:
    if finish is None or not by:
        return y if finish is None else finish.apply(layer, y)
    with _told_of(by, "finish"):
        return finish.apply(layer, y)


def _position(step: Step, axis: ModelAxis, name: str) -> Position:
    labelled, by = axis.comm.labelled(name), step.division.by

    def require_stated(what: str) -> None:
        if by and not step.division.sent(1):  # by which `summary` counts
            raise InputError(
                f"{by}: its local maths uses position.{what}, but the rule does not say what that sends; expected "
                "messages=lambda samples: [splits.Message(...), ...] in its Division"
            )

    def combine(array: np.ndarray, op: str = "sum") -> np.ndarray:
        if isinstance(array, Tensor):
            raise TypeError(f"{name}: combine takes an array, inside a primitive, not a Tensor: no gradient would pass")
        if labelled.is_freed:
            raise RuntimeError(
                f"{name} combines values over a communicator that was freed: run backward before free(), "
                "and use no_grad() for a forward without backward"
            )
        require_stated("combine")
        return labelled.all_reduce(array, op)

    def moved(path: Path, x: Any) -> Any:
        if path:
            require_stated("reshard")
        return axis.make(path, x, name)

    return Position(axis.comm.rank, step.input, step.output, combine, axis.own_samples, moved)


def name_of(module: nn.Module) -> str:
    """The module's name in the whole network."""
    return module.path("")[0].rstrip(".")


# -- the layer and its weights -------------------------------------------------------------------------------------
def same_again(layer: Layer) -> Layer:
    """The same layer for another place in the network: it shares weights and settings, but makes other moves."""
    new = type(layer).__new__(type(layer))
    new.__setstate__({**layer.__getstate__(), **_state(layer), "_parent": None})
    return new


def separate(module: nn.Module, seen: set[int] | None = None) -> None:
    """Gives every place in the network its own Sequential or Branches, if one is used in several.

    Its layers stay the same, and keep the name of the first place.
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


def cut(parameter: nn.Parameter, placement: Placement, rank: int) -> nn.Parameter:
    """This rank's shard as a separate parameter. Values that are already drawn are copied into it.

    If its gradient will be a summand on each rank, it is marked (`nn.Parameter.is_partial`).
    """
    if parameter.piece is not None:
        raise InputError("this network is split already: split a network that is whole")
    index = placement.index(rank, parameter.whole_shape)
    if not index:
        parameter.is_partial = placement.has(Replicated) and placement.mesh.ranks > 1
        return parameter
    new = nn.Parameter(parameter.whole_shape, parameter.initializer, index)
    new.requires_grad = parameter.requires_grad
    if parameter.is_filled:
        new.data = parameter.data[index].copy()
    return new


def cut_buffer(
    layer: nn.Module, name: str, placement: Placement, rank: int, cuts: dict[int, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Keeps only this rank's shard of the layer's buffer, and of the values that `initialize` resets it to.

    `cuts` has, by id, the whole buffers that were cut before, and what was cut from them: all places of one layer
    have one shard.
    """
    whole = layer._buffers[name]
    index = placement.index(rank, whole.shape)
    if id(whole) not in cuts:
        cuts[id(whole)] = whole, whole[index].copy()
    layer._buffers[name] = cuts[id(whole)][1]
    object.__setattr__(layer, name, layer._buffers[name])
    layer._initial_buffers[name] = layer._initial_buffers[name][index].copy()

"""A plan: how each layer of a serial network is done by the ranks of the model axis, from shapes alone.

It is made before any rank is started, and refuses what cannot be done. `parallel_dl.model_parallel` carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.mesh import Invariant, Message, NotOffered, Placement, Replicated, Shape, messages_along
from parallel_dl.splits.default import default_splits
from parallel_dl.splits.names import resolve
from parallel_dl.splits.step import Step
from parallel_dl.splits.walk import Walk
from parallel_dl.splits.way import Way


@dataclass(frozen=True)
class Plan:
    """All layers of a network, `steps` in order, for so many ranks; `splits` are the ways by name of layer or group."""

    ranks: int
    splits: dict[str, str]
    steps: list[Step]
    input_shape: Shape
    input: Placement
    """in which the network's input comes"""
    output: Placement
    """in which the network's output is"""

    def weights(self) -> dict[str, Placement]:
        """Name of a parameter or buffer in the network -> its placement; what is not named is invariant."""
        return {f"{step.name}.{name}": place for step in self.steps for name, place in step.weights.items()}

    def shape_after(self, child: str, rank: int, samples: int) -> Shape:
        """What `rank` has of so many samples after `child`, one of the network's own layers or what is in it."""
        last = [step for step in self.steps if step.name == child or step.name.startswith(f"{child}.")][-1]
        return last.after.shape(rank, (samples, *last.output))

    def partial_sizes(self) -> dict[str, int]:
        """Name -> values of each weight whose gradient is a summand on each rank; they are summed once per update."""
        if self.ranks == 1:
            return {}
        found: dict[int, tuple[str, int]] = {}
        for step in self.steps:
            for name, parameter, placement in step.parameters():
                if placement is not None and placement.has(Replicated) and parameter.requires_grad:
                    found.setdefault(id(parameter), (name, parameter.size))
        return dict(found.values())

    def parameters(self, rank: int) -> int:
        """Values in the weights and biases that `rank` has."""
        return sum(self.layer_parameters(rank).values())

    def layer_parameters(self, rank: int) -> dict[str, int]:
        """The same of `rank` by layer; a parameter used in two layers is counted in the first."""
        counted: set[int] = set()
        found = {}
        for step in self.steps:
            found[step.name] = 0
            for _, parameter, placement in step.parameters():
                if id(parameter) not in counted:
                    counted.add(id(parameter))
                    whole = parameter.whole_shape
                    found[step.name] += math.prod(placement.shape(rank, whole) if placement else whole)
        return found


def plan(
    network: nn.Module,
    input_shape: Sequence[int],
    ranks: int,
    splits: Mapping[str, str] | None = None,
    split_output: bool = True,
    partial_input: bool = False,
) -> Plan:
    """The plan of `network` for samples (*input_shape) and that many ranks of the model axis.

    `splits` maps names of layers to ways (`way`), like {"fc1": "output", "fc2": "input", "features": "rows"}. A name
    may also be that of a Sequential, or "features" and "classifier" for the layers before and after the first Flatten:
    then the way is for all layers in it that can be split that way, unless they are named themselves. Without `splits`
    there is a default. With `split_output` False an output whose classes are split is made whole: a loss of the user's
    own takes no slices of classes. The same holds for an output with more axes than (samples, classes).

    With `partial_input` the input has a gradient, which may be a summand on each rank: then the input is Replicated,
    and nothing is sent for it, if the first layer with weights is a fully connected one that is split; otherwise it is
    Invariant. `Plan.input` says which.

    Raises InputError for an unknown name or way, with the nearest valid one.
    """
    if not isinstance(input_shape, Sequence):
        raise InputError(f"input_shape {input_shape!r}: is the shape of one sample, like (64,) or (1, 28, 28)")
    if splits is not None and not isinstance(splits, Mapping):
        raise InputError(f'splits {splits!r}: are a dictionary of layers and ways, like {{"fc1": "output"}}')
    shapes = {passed.name: passed for passed in nn.layer_shapes(network, input_shape)}
    if "" in shapes:
        raise InputError(f"a {type(network).__name__} alone cannot be split: put it into a Sequential")
    if splits is None:
        splits = default_splits(network, input_shape, ranks)
    ways = resolve(splits, shapes, ranks)
    try:
        walk = Walk(
            network, shapes, ways, ranks, split_output, partial_input, Replicated() if partial_input else Invariant()
        )
    except NotOffered:  # the first layer with weights wants it to count once
        walk = Walk(network, shapes, ways, ranks, split_output, partial_input, Invariant())
    _require_equal_ties(walk.steps)
    canonical = {name: str(Way.parse(text)) for name, text in splits.items()}
    return Plan(ranks, canonical, walk.steps, tuple(input_shape), walk.input, walk.output)


def _require_equal_ties(steps: list[Step]) -> None:
    """A parameter or buffer that two layers share, or two places of one, has to be placed in one way."""
    first: dict[int, tuple[str, Any]] = {}
    for step in steps:
        shared: list[tuple[str, Any, str, Any]] = [
            (name, parameter, "weight", placement) for name, parameter, placement in step.parameters()
        ]
        if not isinstance(step.layer, nn.Branches):
            shared += (
                (f"{step.name}.{name}", buffer, "buffer", step.weights.get(name))
                for name, buffer in step.layer.named_buffers()
            )
        for name, values, kind, placement in shared:
            other, known = first.setdefault(id(values), (name, placement))
            if known != placement:
                raise InputError(f"{other} and {name} are one {kind}, but would be cut differently: split both alike")


# -- what is sent --------------------------------------------------------------------------------------------------
def messages(plan: Plan, rank: int, samples: int = 1) -> Iterator[tuple[str, Message]]:
    """(layer, message) of what `rank` sends over the model axis for one microbatch of so many samples in training.

    `plan` is the network's, made by `splits.plan`. The loss's are not in it: that of a split cross-entropy sends 3
    values per sample in two all-reduces. Nor are the sums of the gradients of replicated weights, which are made once
    per update.
    """
    if plan.ranks == 1:
        return
    for step in plan.steps:
        found: list[Message] = []
        whole, made = (samples, *step.input), (samples, *step.output)
        if not step.constant:
            found += messages_along(step.arrive, rank, step.before.shape(rank, whole), whole)
        found += step.division.sent(samples)
        found += messages_along(step.depart, rank, step.division.output.shape(rank, made), made)
        for ending in step.division.endings:
            end = (samples, *ending.output)
            found += messages_along(ending.path, rank, ending.placement.shape(rank, end), end)
        for message in found:
            yield step.name, message

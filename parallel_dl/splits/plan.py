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
    """The layers of a network in order, as `steps`, for this many ranks; `splits` maps layers or groups to ways."""

    ranks: int
    splits: dict[str, str]
    steps: list[Step]
    input_shape: Shape
    input: Placement
    """the placement of the network's input"""
    output: Placement
    """the placement of the network's output"""

    def weights(self) -> dict[str, Placement]:
        """Name of a parameter or buffer in the network -> its placement; those not named are invariant."""
        return {f"{step.name}.{name}": place for step in self.steps for name, place in step.weights.items()}

    def shape_after(self, child: str, rank: int, samples: int) -> Shape:
        """The shape that `rank` has of this many samples after `child`, a layer of the network or one inside it."""
        last = [step for step in self.steps if step.name == child or step.name.startswith(f"{child}.")][-1]
        return last.after.shape(rank, (samples, *last.output))

    @property
    def has_partial(self) -> bool:
        """Whether the gradient of a weight is a summand on each rank: also of a frozen one, which may be unfrozen."""
        placements = (placement for step in self.steps for _, _, placement in step.parameters())
        return self.ranks > 1 and any(one is not None and one.has(Replicated) for one in placements)

    def partial_sizes(self) -> dict[str, int]:
        """Name -> size of each weight whose gradient is a summand on each rank; these are summed once per update."""
        if self.ranks == 1:
            return {}
        found: dict[int, tuple[str, int]] = {}
        for step in self.steps:
            for name, parameter, placement in step.parameters():
                if placement is not None and placement.has(Replicated) and parameter.requires_grad:
                    found.setdefault(id(parameter), (name, parameter.size))
        return dict(found.values())

    def parameters(self, rank: int) -> int:
        """The number of values in the weights and biases of `rank`."""
        return sum(self.layer_parameters(rank).values())

    def layer_parameters(self, rank: int) -> dict[str, int]:
        """The same for each layer of `rank`; a parameter used in two layers is counted in the first."""
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
    """The plan of `network` for samples (*input_shape) and this many ranks of the model axis.

    `splits` maps names of layers to ways (`way`), like {"fc1": "output", "fc2": "input", "features": "rows"}. A name
    may also be that of a Sequential, or "features" or "classifier" for the layers before or after the first Flatten:
    the way then applies to all layers in it that can be split that way, unless they are named themselves. Without
    `splits`, the default is used. With `split_output` False, an output whose classes are split is gathered, because a
    user's own loss takes no slices of classes. The same holds for an output with more axes than (samples, classes).

    With `partial_input`, the input has a gradient, which may be a summand on each rank: if the first layer with weights
    is a split fully connected layer, the input is Replicated and nothing is sent for it; otherwise it is Invariant.
    `Plan.input` says which.

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
    """(layer, message) for everything `rank` sends over the model axis in training, per microbatch of `samples`.

    `plan` is the network's, made by `splits.plan`. Messages of the loss are not included: a split cross-entropy sends 3
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

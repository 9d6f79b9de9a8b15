"""Stages: the consecutive layers of a network that one rank has, and the activations between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from parallel_dl import nn
from parallel_dl.cost.layers import operations
from parallel_dl.errors import InputError, cut, number_of, one_of, up_to
from parallel_dl.nn.shapes import computes_as

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stages:
    """A Sequential's layers, cut into stages.

    `cuts` has the index of the first layer of each stage and, at the end, the number of layers. `inputs[s]` is the
    input shape of one sample in stage s.
    """

    names: tuple[str, ...]
    cuts: tuple[int, ...]
    inputs: tuple[Shape, ...]
    output: Shape

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def layers(self, stage: int) -> tuple[str, ...]:
        """The names of the layers of a stage."""
        return self.names[self.cuts[stage] : self.cuts[stage + 1]]

    def as_text(self) -> list[str]:
        """For people and JSON: the layers of each stage."""
        return [" ".join(self.layers(stage)) for stage in range(len(self))]


def cut_stages(
    network: nn.Module, input_shape: Sequence[int], stages: int, starts: Sequence[str] | None = None
) -> Stages:
    """Cuts a Sequential for samples (*input_shape) into this many stages.

    Each stage must have weights: by default, it starts with a layer that has some, and layers without weights follow.
    `starts` names the first layer of each stage but the first; without it, the slowest stage gets as little work as
    possible (`lightest`). A Sequential or Branches inside is not cut, nor is a user's own layer. The shapes of such a
    layer are measured if it does not define them (`nn.layer_shapes`), and its work may be an estimate
    (`cost.operations`).

    Raises InputError for a network that is not a Sequential or that has its own weights or hooks, for more stages than
    layers with weights, for a name that is unknown or out of order, and for a weight or buffer in two stages.
    """
    if not computes_as(network, nn.Sequential):
        raise InputError(f"a {type(network).__name__} cannot be cut into stages: put its layers into a Sequential")
    if network._parameters or network._buffers:
        own = next(iter({**network._parameters, **network._buffers}))
        raise InputError(f"the network's own {own} would be in no stage: put it into one of its layers")
    if stages > 1 and (network._before_forward or network._after_forward):
        raise InputError("a hook on the whole network would run in no stage: register it on one of its layers")
    names = tuple(network._modules)
    weighted = [number for number, name in enumerate(names) if network._modules[name].parameters()]
    if not 1 <= stages <= max(1, len(weighted)):
        layers = number_of(len(weighted), "layer")
        raise InputError(f"{number_of(stages, 'stage')}: the network has {layers} with weights; {up_to(len(weighted))}")
    shapes, work = [tuple(input_shape)], []
    for name in names:
        layer, done = network._modules[name], 0
        after = shapes[-1]
        for passed in nn.layer_shapes(layer, shapes[-1], name, measure=True):
            done += operations(passed).work
            after = passed.output
        work.append(float(done))
        shapes.append(after)
    if starts is not None:
        cuts = _by_hand(names, stages, starts)
    else:
        begins = [0, *weighted[1:], len(names)]
        blocks = [sum(work[begin:end]) for begin, end in pairwise(begins)]
        cuts = tuple(begins[block] for block in lightest(blocks, stages))
    for begin, end in pairwise(cuts):
        if stages > 1 and not any(begin <= number < end for number in weighted):
            where = "" if begin else "the stage before it "
            raise InputError(f"{where}has no weights; put it with a neighbour", "stages", cut(names[begin or end]))
    found = Stages(names, cuts, tuple(shapes[cut] for cut in cuts[:-1]), shapes[-1])
    _require_own_weights(network, found)
    return found


def _by_hand(names: Sequence[str], stages: int, starts: Sequence[str]) -> tuple[int, ...]:
    if len(starts) != stages - 1:
        wanted = f"for {number_of(stages, 'stage')} name {number_of(stages - 1, 'layer')}"
        raise InputError(wanted, "stages", ", ".join(map(cut, starts)))
    cuts = [0]
    for name in starts:
        if name not in names[cuts[-1] + 1 :]:
            raise InputError(one_of(names[cuts[-1] + 1 :]), "stages", cut(name))
        cuts.append(names.index(name))
    return (*cuts, len(names))


def lightest(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """Where to cut a list of costs into non-empty parts so that the heaviest part is as light as possible.

    Returns where each part begins, and the number of costs. Dynamic programming, O(parts n^2); of several best
    solutions, the one with the earliest cuts.
    """
    sums, n = list(accumulate(costs, initial=0.0)), len(costs)
    # heaviest[i]: of the first i costs, in the number of parts so far; begins[k][i]: where the last of k parts begins
    heaviest = [0.0] + [float("inf")] * n
    begins: list[list[int]] = []
    for _ in range(parts):
        after, begin_of = [float("inf")] * (n + 1), [0] * (n + 1)
        for end in range(1, n + 1):
            after[end], begin_of[end] = min(
                (max(heaviest[begin], sums[end] - sums[begin]), begin) for begin in range(end)
            )
        heaviest = after
        begins.append(begin_of)
    cuts = [n]
    for begin_of in reversed(begins):
        cuts.append(begin_of[cuts[-1]])
    return tuple(reversed(cuts))


def _require_own_weights(network: nn.Module, stages: Stages) -> None:
    owner: dict[int, tuple[int, str]] = {}
    for stage in range(len(stages)):
        for layer in stages.layers(stage):
            module = network._modules[layer]
            for kind, named in (("weight", module.named_parameters()), ("buffer", module.named_buffers())):
                for name, values in named:
                    other, first = owner.setdefault(id(values), (stage, f"{layer}.{name}"))
                    if other != stage:
                        raise InputError(
                            f"{first} and {layer}.{name} are one {kind}, but in stages {other} and {stage}: "
                            f"layers that share a {kind} have to be in one stage"
                        )

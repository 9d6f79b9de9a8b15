"""What each rank of a plan has, computes and sends: its parameters, its share of the work, its messages.

Work is divided exactly: the ranks' shares of a layer add up to the work of the whole layer. Work that every rank does
in full is counted on each of them. Pooling, whose windows may overlap at a cut, is divided like its result. The
additions of an all-reduce count for the rank with the summand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from parallel_dl import nn
from parallel_dl.cost.layers import operations
from parallel_dl.nn.shapes import Shape
from parallel_dl.partition import shares as even_shares
from parallel_dl.splits import Message, Partial, Plan, Step, messages
from parallel_dl.splits.loss import messages_of_classes


@dataclass(frozen=True)
class Share:
    """One rank's share of a layer, or of all layers: weights, work, and what it sends in one step."""

    rank: int
    parameters: int = 0
    """values in the weights and biases that it has"""
    work: int = 0
    """operations of its share of the forward pass, for all samples"""
    messages: int = 0
    """the number of messages it sends, forward and backward"""
    values_forward: int = 0
    values_backward: int = 0
    """values in them, for all samples"""

    @property
    def values(self) -> int:
        """Values that it sends, forward and backward."""
        return self.values_forward + self.values_backward

    def __add__(self, other: Share) -> Share:
        return Share(
            self.rank,
            self.parameters + other.parameters,
            self.work + other.work,
            self.messages + other.messages,
            self.values_forward + other.values_forward,
            self.values_backward + other.values_backward,
        )


@dataclass(frozen=True)
class LayerShares:
    """One layer, divided: by `way`, if it has one of its own, and by whom it is `done`; a share for each rank."""

    name: str
    way: str | None
    done: str
    """the way; or "rank 1", if only it computes the layer; "follows" if each has a slice; else "every rank" does"""
    shares: list[Share]


@dataclass(frozen=True)
class PlanShares:
    """All layers in order; `loss` is what a cross-entropy of split scores sends, without messages elsewhere.

    `gradients` is the sum, once per update, of the gradients of weights that every rank has but uses for its own slice.
    """

    layers: list[LayerShares]
    loss: list[Share]
    gradients: list[Share]

    @property
    def totals(self) -> list[Share]:
        """By rank: all layers, the loss and the gradients."""
        once = [loss + gradients for loss, gradients in zip(self.loss, self.gradients)]
        return [sum((layer.shares[own.rank] for layer in self.layers), own) for own in once]


def shares_of(plan: Plan, samples: int = 1, microbatches: int = 1) -> PlanShares:
    """What each rank of the plan has, computes and sends in one step with this many samples.

    The samples pass through the network in microbatches of as even a size as possible, each with its own messages.
    """
    sizes = Counter(even_shares(samples, microbatches))
    sent = [_sent(plan, rank, sizes) for rank in range(plan.ranks)]
    parameters = [plan.layer_parameters(rank) for rank in range(plan.ranks)]
    layers = []
    for step in plan.steps:
        shares = [
            replace(
                sent[rank].get(step.name, Share(rank)),
                parameters=parameters[rank][step.name],
                work=sum(times * work_of(step, rank, size) for size, times in sizes.items()),
            )
            for rank in range(plan.ranks)
        ]
        layers.append(LayerShares(step.name, str(step.way) if step.way else None, _done(step, plan.ranks), shares))
    loss = [
        sum((_share(rank, one, samples, microbatches) for one in loss_messages(plan)), Share(rank))
        for rank in range(plan.ranks)
    ]
    partial = sum(plan.partial_sizes().values())
    gradients = [Share(rank, messages=1 if partial else 0, values_backward=partial) for rank in range(plan.ranks)]
    return PlanShares(layers, loss, gradients)


# -- work ----------------------------------------------------------------------------------------------------------
def work_of(step: Step, rank: int, samples: int = 1) -> int:
    """Operations of `rank`'s share of this layer's forward pass."""
    if step.owner is not None and step.owner != rank:
        return 0
    owners = step.division.owners
    if owners and isinstance(step.layer, nn.Branches):
        if step.layer.join == "concatenate":
            return 0
        # n branches need n - 1 additions: each is added to the sum by its rank, but the first, which begins it
        added = owners.count(rank) - (rank == owners[0])
        return samples * math.prod(step.output) * added
    whole = nn.LayerShape(step.name, step.layer, step.input, step.output)
    own, x, y = part_shapes(step, rank, samples)
    values = max(1, math.prod(step.input) * math.prod(step.output))
    return own * operations(whole).work * (math.prod(x) * math.prod(y)) // values


def part_shapes(step: Step, rank: int, samples: int = 1) -> tuple[int, Shape, Shape]:
    """(samples, input, result) that count for `rank`: its work is in proportion to the values in both of a sample."""
    own, *y = step.division.output.shape(rank, (samples, *step.output))
    counted = step.division.work_input
    return (own, step.input, tuple(y)) if counted is None else (own, counted(rank), step.output)


def _done(step: Step, ranks: int) -> str:
    if step.way is not None:
        return str(step.way)
    if step.owner is not None:
        return f"rank {step.owner}"
    whole = (ranks, *step.output)  # so many samples that each rank has one
    made = step.division.output
    in_parts = made.has(Partial) or any(made.shape(rank, whole) != whole for rank in range(ranks))
    return "follows" if in_parts else "every rank"


# -- messages ------------------------------------------------------------------------------------------------------
def loss_messages(plan: Plan) -> Iterator[Message]:
    """What every rank sends, per sample, for the cross-entropy of the plan's output; nothing where it has all scores.

    Two all-reduces: of each sample's largest score; of its sum of exponentials, and its score of the right class.
    """
    if plan.ranks > 1 and plan.output.shard(1) is not None:
        yield from messages_of_classes()


def _sent(plan: Plan, rank: int, sizes: Mapping[int, int]) -> dict[str, Share]:
    """Layer -> what `rank` sends for it, of microbatches of these sizes, each so many times."""
    found: dict[str, Share] = {}
    for size, times in sizes.items():
        for name, message in messages(plan, rank, size):
            found[name] = found.get(name, Share(rank)) + _share(rank, message, times, times)
    return found


def _share(rank: int, message: Message, as_many_values: int, as_many_messages: int) -> Share:
    messages, values = as_many_messages * message.messages, as_many_values * message.values
    if message.direction == "forward":
        return Share(rank, messages=messages, values_forward=values)
    return Share(rank, messages=messages, values_backward=values)

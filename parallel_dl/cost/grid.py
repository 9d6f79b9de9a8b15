"""What each rank has, does, holds and sends in a pipeline whose layers are split.

All ranks of a stage share its layers (`shares`); at the end of a stage, a rank sends its activation to the rank of the
next stage at the same coordinate.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, cached_property

from parallel_dl.cost.network import NetworkCost
from parallel_dl.cost.pipeline import BYTES, PipelineCost, RankCost, loaded
from parallel_dl.cost.shares import PlanShares, Share, shares_of
from parallel_dl.cost.stages import Stages
from parallel_dl.partition import shares as even_shares
from parallel_dl.schedule import Plan as Schedule
from parallel_dl.schedule import Times, peak, simulate, with_messages
from parallel_dl.splits import Plan


@dataclass(frozen=True)
class GridRank(RankCost):
    """One rank: number `model` of those that share the stages of rank `pipe` of the pipeline."""

    pipe: int
    model: int
    share: Share
    """its share of the layers of its stages, and what it sends to the ranks of the same stages"""
    between: Share
    """what it sends to ranks of other stages"""


@dataclass(frozen=True)
class Grid:
    """All ranks, stage by stage, as MPI numbers them."""

    ranks: tuple[GridRank, ...]
    shares: PlanShares
    """for each layer: what the ranks of its stage have, do and send"""


def grid_of(network: NetworkCost, pipeline: PipelineCost, stages: Stages, schedule: Schedule, plan: Plan) -> Grid:
    """What each rank has if `plan` splits the layers of a pipeline; all five arguments are of one network.

    A stage takes as long as its busiest rank. Ranks of a stage with summands of gradients sum these once per update: in
    an asynchronous schedule, after each microbatch.
    """
    found = _Counted(network, pipeline, stages, with_messages(schedule), plan)
    ranks = [found.rank(own, model) for own in pipeline.ranks for model in range(plan.ranks)]
    gradients = [
        sum((found.gradients(own.stages, model) for own in pipeline.ranks), Share(model)) for model in range(plan.ranks)
    ]
    return Grid(tuple(ranks), replace(found.shares, gradients=gradients))


@dataclass(frozen=True)
class _Counted:
    """The numbers of one stage or boundary, for one rank of those that share it."""

    network: NetworkCost
    pipeline: PipelineCost
    stages: Stages
    schedule: Schedule
    plan: Plan

    @cached_property
    def sizes(self) -> list[int]:
        """Samples in each microbatch."""
        return even_shares(self.network.samples, self.schedule.microbatches)

    @cached_property
    def shares(self) -> PlanShares:
        return shares_of(self.plan, self.network.samples, self.schedule.microbatches)

    @cached_property
    def stage_of(self) -> dict[str, int]:
        return {name: stage for stage in range(len(self.stages)) for name in self.stages.layers(stage)}

    @cached_property
    def partial_sizes(self) -> dict[str, int]:
        return self.plan.partial_sizes()

    def is_in(self, stages: tuple[int, ...], name: str) -> bool:
        """Whether a layer, or a weight, of that name is in one of the stages."""
        return self.stage_of[name.split(".")[0]] in stages

    @cached_property
    def idle(self) -> tuple[float, ...]:
        """By rank of the pipeline."""
        busiest = tuple(
            float(max(self.multiply_adds((stage,), model) for model in range(self.plan.ranks)))
            for stage in range(len(self.stages))
        )
        return simulate(self.schedule, Times(busiest, busiest, busiest)).idle_shares

    def multiply_adds(self, stages: tuple[int, ...], model: int) -> int:
        """Of the forward pass of all samples: a layer's are divided as its work is."""
        samples = self.network.samples
        return sum(
            samples * cost.multiply_adds * layer.shares[model].work // max(1, cost.work)
            for cost, layer in zip(self.network.layers, self.shares.layers)
            if self.is_in(stages, layer.name)
        )

    def gradients(self, stages: tuple[int, ...], model: int) -> Share:
        """The sums of the stages' gradients of which each rank has a summand."""
        times = self.schedule.microbatches if self.schedule.is_asynchronous else 1
        values = sum(size for name, size in self.partial_sizes.items() if self.is_in(stages, name))
        return Share(model, messages=times if values else 0, values_backward=times * values)

    def share(self, stages: tuple[int, ...], model: int) -> Share:
        """All of the stages' layers, their gradients and, at the end, the loss."""
        layers = (layer.shares[model] for layer in self.shares.layers if self.is_in(stages, layer.name))
        found = sum(layers, self.gradients(stages, model))
        return found + self.shares.loss[model] if len(self.stages) - 1 in stages else found

    def between(self, pipe: int, model: int) -> Share:
        """At a boundary, a rank sends its shard of the activation, and the gradient comes back."""

        sends = [action for action in self.schedule.programs[pipe] if action.kind in ("SF", "SB")]
        found = Share(model)
        for (kind, stage, samples), times in Counter(
            (a.kind, a.stage, self.sizes[a.microbatch]) for a in sends
        ).items():
            before = stage if kind == "SF" else stage - 1
            sent = times * math.prod(self.plan.shape_after(self.stages.layers(before)[-1], model, samples))
            found += Share(model, 0, 0, times, *((sent, 0) if kind == "SF" else (0, sent)))
        return found

    def activation_bytes(self, pipe: int, model: int) -> int:
        """The most that the rank's shards of its layers' outputs take."""

        @cache
        def held(stage: int, samples: int) -> int:
            own = (step for step in self.plan.steps if self.is_in((stage,), step.name) and step.owner in (None, model))
            return BYTES * sum(math.prod(step.after.shape(model, (samples, *step.output))) for step in own)

        return peak(self.schedule.programs[pipe], lambda action: held(action.stage, self.sizes[action.microbatch]))

    def rank(self, own: RankCost, model: int) -> GridRank:
        share, fast = self.share(own.stages, model), self.pipeline.cache_bytes
        weight_bytes = BYTES * share.parameters
        return GridRank(
            rank=own.rank * self.plan.ranks + model,
            stages=own.stages,
            layers=own.layers,
            parameters=share.parameters,
            multiply_adds=self.multiply_adds(own.stages, model),
            idle=self.idle[own.rank],
            peak_live=own.peak_live,
            activation_bytes=self.activation_bytes(own.rank, model),
            weight_bytes_loaded=None if fast is None else loaded(weight_bytes, self.schedule.microbatches, fast),
            pipe=own.rank,
            model=model,
            share=share,
            between=self.between(own.rank, model),
        )

"""What each rank of a pipeline has, computes and holds, how long it is idle, and whether its weights fit its cache.

After Ben-Nun and Hoefler, arXiv 1802.09941, section "Pipelining": a rank with only a few operations can keep their
weights in its cache, whereas a rank with the whole network reloads all of them for each microbatch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parallel_dl.cost.network import NetworkCost
from parallel_dl.cost.stages import Stages
from parallel_dl.errors import InputError, number_of
from parallel_dl.partition import shares
from parallel_dl.schedule import Plan, Times, peak, peak_live, simulate, with_messages

BYTES = 4  # of a float32


@dataclass(frozen=True)
class RankCost:
    """One rank of a pipeline, in one step with all microbatches."""

    rank: int
    stages: tuple[int, ...]
    """the numbers of its stages: one, or several with interleaved"""
    layers: tuple[tuple[str, ...], ...]
    """the names of the layers of each of them"""
    parameters: int
    """values in weights and biases"""
    multiply_adds: int
    """of the forward pass of the whole batch"""
    idle: float
    """the share of the step in which it does not compute, on the simulator's clock: see `pipeline_cost`"""
    peak_live: int
    """the most forwards of a stage that still await their backward (`schedule.peak_live`)"""
    activation_bytes: int
    """the most bytes in the outputs of its layers, for the microbatches that are alive at the same time; float32"""
    weight_bytes_loaded: int | None
    """see `loaded`; None where nothing is known of the cache"""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and biases in float32."""
        return BYTES * self.parameters


@dataclass(frozen=True)
class PipelineCost:
    """All ranks of a pipeline, compared with one rank that runs the same microbatches alone."""

    schedule: str
    microbatches: int
    cache_bytes: int | None
    """bytes of the cache that one rank has for its weights; None: not known"""
    ranks: tuple[RankCost, ...]
    serial_weight_bytes: int
    """bytes of all weights and biases, in float32"""
    serial_weight_bytes_loaded: int | None
    """see `loaded`, for a rank that has all weights"""


def loaded(weight_bytes: int, microbatches: int, cache_bytes: int) -> int:
    """Bytes of weights that come from memory in the forward passes of one step.

    Each weight is loaded once if all of the rank's weights fit into its cache, otherwise once per microbatch: layers
    run in order, and by the time the first ones are needed again, the last ones have replaced them. The backward pass
    is not counted, nor are activations, which also need room in the cache.
    """
    return weight_bytes if weight_bytes <= cache_bytes else microbatches * weight_bytes


def pipeline_cost(network: NetworkCost, stages: Stages, plan: Plan, cache_bytes: int | None = None) -> PipelineCost:
    """What each rank of `plan` has of a network that is cut into `stages`, for a batch of `network.samples` samples.

    `network` and `stages` are of one network (`cost_of`, `cut_stages`); the batch is divided into the plan's
    microbatches as evenly as possible. For the idle time, a forward takes its multiply-adds, each half of a backward
    takes as long, and messages take no time. `cache_bytes` is the size of one rank's cache. Raises InputError if the
    plan has a different number of stages, and for negative bytes.
    """
    if len(stages) != plan.stages:
        raise InputError(
            f"{plan.name} has {number_of(plan.stages, 'stage')}, but the network is cut into {len(stages)}"
        )
    if cache_bytes is not None and cache_bytes < 0:
        raise InputError(f"cache_bytes {cache_bytes}: must be at least 0")
    samples, m = network.samples, plan.microbatches
    stage_of = {name: stage for stage in range(len(stages)) for name in stages.layers(stage)}
    parameters, multiply_adds, activations = ([0] * len(stages) for _ in range(3))
    for layer in network.layers:
        stage = stage_of[layer.name.split(".")[0]]  # a layer of branches belongs to where they are
        parameters[stage] += layer.parameters
        multiply_adds[stage] += samples * layer.multiply_adds
        activations[stage] += BYTES * layer.activations
    peaks, sizes = peak_live(plan), shares(samples, m)
    work = tuple(float(operations) for operations in multiply_adds)
    idle = simulate(with_messages(plan), Times(work, work, work)).idle_shares
    ranks = []
    for rank, program in enumerate(plan.programs):
        own = plan.stages_of[rank]
        count = _sum(parameters, own)
        ranks.append(
            RankCost(
                rank=rank,
                stages=own,
                layers=tuple(stages.layers(stage) for stage in own),
                parameters=count,
                multiply_adds=_sum(multiply_adds, own),
                idle=idle[rank],
                peak_live=peaks[rank],
                activation_bytes=peak(program, lambda action: activations[action.stage] * sizes[action.microbatch]),
                weight_bytes_loaded=None if cache_bytes is None else loaded(BYTES * count, m, cache_bytes),
            )
        )
    serial = BYTES * network.parameters
    of_serial = None if cache_bytes is None else loaded(serial, m, cache_bytes)
    return PipelineCost(plan.name, m, cache_bytes, tuple(ranks), serial, of_serial)


def _sum(numbers: Sequence[int], stages: Iterable[int]) -> int:
    return sum(numbers[stage] for stage in stages)

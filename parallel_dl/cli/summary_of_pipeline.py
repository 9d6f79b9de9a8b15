"""`parallel-dl summary --pp`: what each rank of a pipeline has, does and holds, as flags, text and JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl.cli.limits import require_count
from parallel_dl.cli.stages import stages_for
from parallel_dl.errors import InputError, cut, number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parallel_dl.cost import NetworkCost, PipelineCost
    from parallel_dl.nn import Module

Pp = Annotated[
    int | None, typer.Option("--pp", help="Ranks in a pipeline, each with some of the layers. [default: none]")
]
Microbatches = Annotated[
    int | None, typer.Option("--microbatches", help="Pieces of a batch, fed into the pipeline. [default: --pp]")
]
CacheBytes = Annotated[
    int | None,
    typer.Option("--cache-bytes", help="Size of a rank's cache: do its weights stay there? [default: not given]"),
]

_NAMED = 3  # layers of a stage that are all named; of more the first and the last


def require_pp(
    pp: int | None,
    ranks: int,
    schedule: str | None,
    stage: Sequence[str] | None,
    chunks: int | None,
    microbatches: int | None,
    cache_bytes: int | None,
) -> None:
    """Refuses numbers that cannot be, what belongs to --pp without it, and --pp with layers split among `ranks`."""
    of_pipeline = {
        "schedule": schedule,
        "stage": stage[0] if stage else None,
        "chunks": chunks,
        "microbatches": microbatches,
        "cache-bytes": cache_bytes,
    }
    for flag, value in of_pipeline.items():
        if value is not None and pp is None:
            raise InputError(f"--{flag} {cut(str(value))}: belongs to --pp N")
    for flag, number, least in (("pp", pp, 1), ("microbatches", microbatches, 1), ("cache-bytes", cache_bytes, 0)):
        require_count(flag, number, least, 2**63 - 1)
    if pp is not None and ranks > 1:
        raise InputError(f"--pp {pp} and --mp {ranks}: summary tells of one of them at a time")


def pipeline_for(
    network: Module,
    shape: Sequence[int],
    facts: NetworkCost,
    pp: int,
    schedule: str | None,
    stage: Sequence[str] | None,
    chunks: int | None,
    microbatches: int | None,
    cache_bytes: int | None,
) -> PipelineCost:
    """`cost.pipeline_cost` of the flags, cut as `train` does; its refusals begin with the flag."""
    from parallel_dl import cost

    fed = pp if microbatches is None else microbatches
    plan, stages = stages_for(network, shape, schedule or "1f1b", pp, fed, chunks, stage)
    return cost.pipeline_cost(facts, stages, plan, cache_bytes)


def as_object(pipeline: PipelineCost) -> dict[str, Any]:
    """The value of the key `pipeline`. What is not known is null."""
    return {
        "pp": len(pipeline.ranks),
        "schedule": pipeline.schedule,
        "microbatches": pipeline.microbatches,
        "cache_bytes": pipeline.cache_bytes,
        "ranks": [
            {
                "rank": own.rank,
                "stages": list(own.stages),
                "layers": [list(layers) for layers in own.layers],
                "parameters": own.parameters,
                "weight_bytes": own.weight_bytes,
                "multiply_adds": own.multiply_adds,
                "idle": own.idle if math.isfinite(own.idle) else None,
                "peak_live": own.peak_live,
                "activation_bytes": own.activation_bytes,
                "weight_bytes_loaded": own.weight_bytes_loaded,
            }
            for own in pipeline.ranks
        ],
        "serial": {
            "weight_bytes": pipeline.serial_weight_bytes,
            "weight_bytes_loaded": pipeline.serial_weight_bytes_loaded,
        },
    }


# -- for people ----------------------------------------------------------------------------------------------------
def title(network: str, pipeline: PipelineCost) -> str:
    """What the table is of."""
    ranks, m = len(pipeline.ranks), pipeline.microbatches
    what = f"{number_of(ranks, 'rank')}, {pipeline.schedule}"
    return f"{network} in a pipeline: {what}, {number_of(m, 'microbatch')}"


def headers(pipeline: PipelineCost) -> list[str]:
    """Of the columns of `rows`."""
    told = ["rank", "layers", "parameters", "weight\nbytes", "multiply-adds", "idle", "peak live", "activation\nbytes"]
    return told if pipeline.cache_bytes is None else [*told, "weight bytes\nloaded"]


def rows(pipeline: PipelineCost) -> list[list[str]]:
    """A line for each rank; where the cache is known, two more: their sum, and a rank that does it all alone."""
    told = []
    for own in pipeline.ranks:
        done = [f"{number:,}" for number in (own.parameters, own.weight_bytes, own.multiply_adds)]
        idle = f"{own.idle:.1%}" if math.isfinite(own.idle) else ""
        held = [own.peak_live, own.activation_bytes]
        held += [] if own.weight_bytes_loaded is None else [own.weight_bytes_loaded]
        layers = ", ".join(map(_named, own.layers))
        told.append([f"{own.rank:,}", layers, *done, idle, *map("{:,}".format, held)])
    if pipeline.serial_weight_bytes_loaded is not None:
        together = sum(own.weight_bytes_loaded or 0 for own in pipeline.ranks)
        for name, number in (("all", together), ("serial", pipeline.serial_weight_bytes_loaded)):
            told.append([name, "", "", f"{pipeline.serial_weight_bytes:,}", "", "", "", "", f"{number:,}"])
    return told


def _named(layers: Sequence[str]) -> str:
    return " ".join(layers) if len(layers) <= _NAMED else f"{layers[0]} .. {layers[-1]}"


def notes(pipeline: PipelineCost, samples: str) -> list[str]:
    """What the numbers are; `samples` is the size of the batch in words."""
    lines = [
        f"Of each rank, in a step with {samples}: weights and biases in float32, multiply-adds of the forward pass.",
        "Idle: share of the step, simulated: each half of a backward takes as long as the forward, messages no time.",
        "Peak live: most forwards of a stage whose backward is still to come. Activation bytes: the most in outputs of",
        "the rank's layers for all that is alive at a time, in float32.",
    ]
    if pipeline.cache_bytes is None:
        return lines
    cache = number_of(pipeline.cache_bytes, "byte")
    return [
        *lines,
        f"Loaded: weight bytes from memory, forward. Once if all of the rank's fit into {cache},",
        "else once per microbatch. Serial: one rank with all weights does the same microbatches.",
    ]

"""`parallel-dl summary --pp`: what each rank of a pipeline has, does and holds, as flags, text and JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl.cli.flags import PipelineFlags
from parallel_dl.cli.limits import require_count
from parallel_dl.cli.report import new_table
from parallel_dl.cli.stages import stages_for
from parallel_dl.errors import InputError, cut, number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from parallel_dl.cost import Grid, NetworkCost, PipelineCost, RankCost, Share
    from parallel_dl.nn import Module
    from parallel_dl.splits import Plan

CacheBytes = Annotated[
    int | None,
    typer.Option(help="Cache size per rank in bytes; report whether its weights fit. [default: not reported]"),
]

_NAMED = 3  # layers of a stage that are all named; of more the first and the last


def require_pp(flags: PipelineFlags, cache_bytes: int | None) -> None:
    """Refuses invalid numbers, and flags that need --pp without it."""
    of_pipeline = {
        "schedule": flags.schedule,
        "stage": flags.stage[0] if flags.stage else None,
        "chunks": flags.chunks,
        "microbatches": flags.microbatches,
        "cache_bytes": cache_bytes,
    }
    for field, value in of_pipeline.items():
        if value is not None and flags.pp is None:
            raise InputError("needs `pp` N", field, cut(str(value)))
    for field, number, least in (
        ("pp", flags.pp, 1),
        ("microbatches", flags.microbatches, 1),
        ("cache_bytes", cache_bytes, 0),
    ):
        require_count(field, number, least, 2**63 - 1)


def pipeline_for(
    network: Module,
    shape: Sequence[int],
    facts: NetworkCost,
    flags: PipelineFlags,
    cache_bytes: int | None,
    plan: Plan | None,
) -> tuple[PipelineCost | None, Grid | None]:
    """`cost.pipeline_cost` of the flags, cut as `train` does, and `cost.grid_of` where a plan splits the layers.

    None without --pp; refusals begin with the flag.
    """
    from parallel_dl import cost

    if flags.pp is None:
        return None, None
    fed = flags.pp if flags.microbatches is None else flags.microbatches
    schedule, stages = stages_for(network, shape, flags.schedule or "1f1b", flags.pp, fed, flags.chunks, flags.stage)
    pipeline = cost.pipeline_cost(facts, stages, schedule, cache_bytes)
    return pipeline, None if plan is None else cost.grid_of(facts, pipeline, stages, schedule, plan)


def as_object(pipeline: PipelineCost, grid: Grid | None = None) -> dict[str, Any]:
    """The value of the key `pipeline`. What is not known is null."""
    found = {
        "pp": len(pipeline.ranks),
        "schedule": pipeline.schedule,
        "microbatches": pipeline.microbatches,
        "cache_bytes": pipeline.cache_bytes,
        "ranks": [_of_rank(own) for own in pipeline.ranks],
        "serial": {
            "weight_bytes": pipeline.serial_weight_bytes,
            "weight_bytes_loaded": pipeline.serial_weight_bytes_loaded,
        },
    }
    if grid is not None:
        found["grid"] = [
            {
                **_of_rank(own),
                "pipe": own.pipe,
                "model": own.model,
                "work": own.share.work,
                **sent(own.share),
                "to_stages": sent(own.between),
            }
            for own in grid.ranks
        ]
    return found


def _of_rank(own: RankCost) -> dict[str, Any]:
    return {
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


def sent(share: Share) -> dict[str, int]:
    """How much a rank sends."""
    return {
        "messages": share.messages,
        "values": share.values,
        "values_forward": share.values_forward,
        "values_backward": share.values_backward,
    }


# -- for people ----------------------------------------------------------------------------------------------------
def table(network: str, pipeline: PipelineCost, grid: Grid | None = None) -> Table:
    """A line for each rank; where the cache is known, two more: their sum, and a rank that does it all alone."""
    ranks: Sequence[RankCost] = pipeline.ranks if grid is None else grid.ranks
    pp, m = len(pipeline.ranks), pipeline.microbatches
    number = number_of(len(ranks), "rank") if grid is None else f"{pp} x {number_of(len(ranks) // pp, 'rank')}"
    title = f"{network} in a pipeline: {number}, {pipeline.schedule}, {number_of(m, 'microbatch')}"
    headers = [
        "rank",
        "layers",
        "parameters",
        "weight\nbytes",
        "multiply-adds",
        "idle",
        "peak live",
        "activation\nbytes",
    ]
    if pipeline.cache_bytes is not None:
        headers.append("weight bytes\nloaded")
    found = new_table(title, headers, left=("rank", "layers"), words=("layers",))
    for count, row in enumerate(_rows(pipeline, ranks), 1):
        found.add_row(*row, end_section=count == len(ranks))
    return found


def _rows(pipeline: PipelineCost, ranks: Sequence[RankCost]) -> list[list[str]]:
    told = []
    for own in ranks:
        done = [f"{number:,}" for number in (own.parameters, own.weight_bytes, own.multiply_adds)]
        idle = f"{own.idle:.1%}" if math.isfinite(own.idle) else ""
        held = [own.peak_live, own.activation_bytes]
        held += [] if own.weight_bytes_loaded is None else [own.weight_bytes_loaded]
        layers = ", ".join(map(_named, own.layers))
        told.append([f"{own.rank:,}", layers, *done, idle, *map("{:,}".format, held)])
    if pipeline.serial_weight_bytes_loaded is not None:
        together = sum(own.weight_bytes_loaded or 0 for own in ranks)
        for name, weights, number in (
            ("all", sum(own.weight_bytes for own in ranks), together),
            ("serial", pipeline.serial_weight_bytes, pipeline.serial_weight_bytes_loaded),
        ):
            told.append([name, "", "", f"{weights:,}", "", "", "", "", f"{number:,}"])
    return told


def _named(layers: Sequence[str]) -> str:
    return " ".join(layers) if len(layers) <= _NAMED else f"{layers[0]} .. {layers[-1]}"


def notes(pipeline: PipelineCost, samples: int) -> list[str]:
    """What the numbers are."""
    lines = [
        f"Per rank, in a step with {number_of(samples, 'sample')}: weights and biases in float32, multiply-adds of",
        "the forward pass. Idle: simulated share of the step, if each half of a backward takes as long as the forward",
        "and messages take no time. Peak live: most forwards of a stage that still await their backward. Activation",
        "bytes: the most that the outputs of the rank's layers take at a time, in float32.",
    ]
    if pipeline.cache_bytes is None:
        return lines
    cache = number_of(pipeline.cache_bytes, "byte")
    return [
        *lines,
        f"Loaded: weight bytes read from memory in forward passes: once if the rank's weights fit into {cache},",
        "otherwise once per microbatch. Serial: one rank with all weights runs the same microbatches.",
    ]

"""`parallel-dl summary`: a network's layers, what each costs, and with --mp or --pp what each rank has of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli import summary_of_hybrid as of_hybrid
from parallel_dl.cli import summary_of_pipeline as of_pipeline
from parallel_dl.cli import summary_tables as tables
from parallel_dl.cli.flags import AsJson, HybridFlags, NetworkName, PipelineFlags, SplitFlags, taking_flags
from parallel_dl.cli.layout import refuse_beside, require_hybrid
from parallel_dl.cli.limits import require_count
from parallel_dl.cli.networks import network_and_shape
from parallel_dl.cli.report import show
from parallel_dl.cli.splits import parse_splits, plan_for, require_mp
from parallel_dl.errors import number_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from parallel_dl.cost import NetworkCost, PlanShares, Share
    from parallel_dl.splits import Plan


@taking_flags
def summary(
    network: NetworkName,
    split: SplitFlags,
    pipe: PipelineFlags,
    hybrid: HybridFlags,
    dataset: Annotated[
        str | None,
        typer.Option(help="Take input shape and classes from this data set. [default: the network's, or digits]"),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with the data set's files.")] = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples per batch, for work, depth and the choice of data or model parallelism.")
    ] = 1,
    cache_bytes: of_pipeline.CacheBytes = None,
    as_json: AsJson = False,
) -> None:
    """Show a network's layers and what each costs.

    It shows shapes, parameters, multiply-adds, work, depth, and whether splitting a layer pays. With --mp N, it also
    shows how N ranks divide the layers: parameters, work and messages of each; with --pp N, how a pipeline does:
    layers, weights and memory of each rank; with both, what each rank of each stage has; with --hybrid, what is sent.
    No rank is started.
    """
    from parallel_dl import cost

    require_count("batch_size", batch_size)
    require_hybrid(hybrid.hybrid, hybrid.ranks)
    if hybrid.hybrid:
        refuse_beside(hybrid.hybrid, {"mp": split.mp, "pp": pipe.pp})
    ranks, ways = require_mp(split.mp, None if hybrid.hybrid else split.split), parse_splits(split.split)
    of_pipeline.require_pp(pipe, cache_bytes)
    model, shape, classes = network_and_shape(network, dataset, data_dir)
    facts = cost.cost_of(model, shape, batch_size)
    found = as_object(network, shape, classes, facts)
    told = [(tables.layers(network, shape, classes, facts), tables.notes_of_layers(facts))]
    plan = None if split.mp is None else plan_for(model, shape, ranks, ways)
    pipeline, grid = of_pipeline.pipeline_for(model, shape, facts, pipe, cache_bytes, plan)
    if plan is not None:
        shares = cost.shares_of(plan, batch_size) if grid is None else grid.shares
        found = _with_shares(found, plan, shares)
        told.append((tables.shares(network, ranks, shares), tables.notes_of_shares(ranks, batch_size)))
        if grid is None:
            told.append((tables.ranks(facts, shares.totals), tables.NOTES_OF_RANKS))
    if pipeline is not None:
        found["pipeline"] = of_pipeline.as_object(pipeline, grid)
        told.append((of_pipeline.table(network, pipeline, grid), of_pipeline.notes(pipeline, batch_size)))
    if grid is not None:
        told.append((tables.messages(grid), tables.NOTES_OF_MESSAGES))
    if hybrid.hybrid:
        from parallel_dl.cost.hybrid import traffic

        sent = traffic(model, shape, hybrid.ranks or 1, batch_size, ways)
        found["hybrid"] = of_hybrid.as_object(sent)
        told.append((of_hybrid.table(network, sent), of_hybrid.notes(number_of(batch_size, "sample"))))
    if launch.mpirun_rank() != 0:  # in a user's mpirun every rank counts the same: one says it
        return
    if as_json:
        print(json.dumps(found))
        return
    _show(told)


def _show(told: Iterable[tuple[Table, Iterable[str]]]) -> None:
    """The tables, each with its notes; an empty line before each title but the first."""
    for number, (table, notes) in enumerate(told):
        if number and table.title:
            print()
        show(table, notes)


def as_object(network: str, shape: Iterable[int], classes: int, facts: NetworkCost) -> dict[str, Any]:
    """The JSON object. What has no value is null."""
    return {
        "network": network,
        "input_shape": list(shape),
        "classes": classes,
        "batch_size": facts.samples,
        "mp": 1,
        "parameters": facts.parameters,
        "multiply_adds": facts.multiply_adds,
        "work": facts.work,
        "depth": facts.depth,
        "average_parallelism": facts.average_parallelism,
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "output_shape": list(layer.output_shape),
                "parameters": layer.parameters,
                "multiply_adds": layer.multiply_adds,
                "activations": layer.activations,
                "work": layer.work,
                "depth": layer.depth,
                "average_parallelism": layer.average_parallelism,
                "activations_per_weight": layer.activations_per_weight,
                "threshold_batch": layer.threshold_batch,
                "choice": layer.choice(facts.samples),
            }
            for layer in facts.layers
        ],
    }


def _with_shares(found: dict[str, Any], plan: Plan, shares: PlanShares) -> dict[str, Any]:
    """The JSON object for a plan: what each rank has of all layers, and of each."""
    layers = found.pop("layers")
    ranks = [
        {
            "rank": total.rank,
            "parameters": total.parameters,
            "parameters_share": _part(total.parameters, found["parameters"]),
            "work": total.work,
            "work_share": _part(total.work, found["work"]),
            "messages": total.messages,
            "values": total.values,
        }
        for total in shares.totals
    ]
    return {
        **found,
        "mp": plan.ranks,
        "split": plan.splits,
        "ranks": ranks,
        "loss": [_share(share) for share in shares.loss],
        "gradients": [_share(share) for share in shares.gradients],
        "layers": [
            {**layer, "split": own.way, "shares": [_share(share) for share in own.shares]}
            for layer, own in zip(layers, shares.layers)
        ],
    }


def _share(share: Share) -> dict[str, int]:
    held = {"rank": share.rank, "parameters": share.parameters, "work": share.work}
    return {**held, **of_pipeline.sent(share)}


def _part(number: int, whole: int) -> float | None:
    return number / whole if whole else None

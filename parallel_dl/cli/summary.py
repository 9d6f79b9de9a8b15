"""`parallel-dl summary`: a network's layers, what each costs, and with --mp or --pp what each rank has of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli import hybrid as of_hybrid
from parallel_dl.cli import summary_of_pipeline as of_pipeline
from parallel_dl.cli.hybrid import Hybrid, Ranks
from parallel_dl.cli.layout import Chunks, Schedule, Stage
from parallel_dl.cli.limits import require_count
from parallel_dl.cli.networks import network_and_shape
from parallel_dl.cli.splits import Mp, Split, parse_splits, plan_for, require_mp
from parallel_dl.cli.summary_of_pipeline import CacheBytes, Microbatches, Pp
from parallel_dl.cli.terminal import console
from parallel_dl.errors import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.table import Table

    from parallel_dl.cost import LayerCost, NetworkCost, PipelineCost, PlanShares, Share
    from parallel_dl.splits import Plan

_PREFIXES = "kMGTPEZYRQ"
_SIDE_BY_SIDE = 4  # so many ranks' numbers stand side by side, those of more as the least and the most


def summary(
    network: Annotated[str, typer.Argument(help="Which network.")],
    dataset: Annotated[
        str | None, typer.Option(help="Where input shape and classes come from. [default: the network's, or digits]")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data set's files.")] = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples whose work and depth are counted, and for which data or model is chosen.")
    ] = 1,
    mp: Mp = None,
    split: Split = None,
    pp: Pp = None,
    schedule: Schedule = None,
    stage: Stage = None,
    chunks: Chunks = None,
    microbatches: Microbatches = None,
    cache_bytes: CacheBytes = None,
    hybrid: Hybrid = None,
    hybrid_ranks: Ranks = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Print a network's layers with shapes, parameters, multiply-adds, work, depth, and whether splitting them pays.

    With --mp N also how N ranks would divide them: parameters, work and messages of each; with --pp N how a pipeline
    would: layers, weights and memory of each; with --hybrid what it sends. No rank is started.
    """
    from parallel_dl import cost, networks

    networks.require_known(network)
    require_count("batch-size", batch_size)
    of_hybrid.require_hybrid(hybrid, hybrid_ranks, {"mp": mp, "pp": pp})
    ranks, ways = require_mp(mp, None if hybrid else split), parse_splits(split)
    of_pipeline.require_pp(pp, ranks, schedule, stage, chunks, microbatches, cache_bytes)
    model, shape, classes = network_and_shape(network, dataset, data_dir)
    facts = cost.cost_of(model, shape, batch_size)
    plan = None if mp is None else plan_for(model, shape, ranks, ways)
    shares = None if plan is None else cost.shares_of(plan, batch_size)
    pipeline = None
    if pp is not None:
        given = (schedule, stage, chunks, microbatches, cache_bytes)
        pipeline = of_pipeline.pipeline_for(model, shape, facts, pp, *given)
    traffic = None if hybrid is None else of_hybrid.traffic_for(model, shape, hybrid_ranks or 1, batch_size, ways)
    if launch.mpirun_rank() != 0:  # in a user's mpirun every rank counts the same: one says it
        return
    if as_json:
        found = as_object(network, shape, classes, facts)
        if plan is not None and shares is not None:
            found = _with_shares(found, plan, shares)
        if pipeline is not None:
            found["pipeline"] = of_pipeline.as_object(pipeline)
        if traffic is not None:
            found["hybrid"] = of_hybrid.as_object(traffic)
        print(json.dumps(found))
        return
    _print(_table(network, shape, classes, facts), _notes(facts))
    if shares is not None:
        print()
        _print(_table_of_shares(network, ranks, shares), _notes_of_shares(ranks, batch_size))
        _print(_table_of_ranks(facts, shares.totals), _NOTES_OF_RANKS)
    if pipeline is not None:
        print()
        _print(_table_of_pipeline(network, pipeline), of_pipeline.notes(pipeline, _samples(batch_size)))
    if traffic is not None:
        print()
        table = _empty_table(f"{network} on {number_of(hybrid_ranks or 1, 'rank')}: one weird trick", show_footer=False)
        for header in ("what is sent", "data parallel", "hybrid"):
            table.add_column(header, justify="left" if header == "what is sent" else "right", no_wrap=True)
        for row in of_hybrid.rows(traffic):
            table.add_row(*row)
        _print(table, of_hybrid.notes(_samples(batch_size)))


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
        "layers": [
            {**layer, "split": own.way, "shares": [_share(share) for share in own.shares]}
            for layer, own in zip(layers, shares.layers)
        ],
    }


def _share(share: Share) -> dict[str, int]:
    return {
        "rank": share.rank,
        "parameters": share.parameters,
        "work": share.work,
        "messages": share.messages,
        "values": share.values,
        "values_forward": share.values_forward,
        "values_backward": share.values_backward,
    }


def _part(number: int, whole: int) -> float | None:
    return number / whole if whole else None


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _count(number: float | None) -> str:
    """Whole numbers as they are, others to three digits; nothing for None or 0."""
    if not number:
        return ""
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _short(number: float | None) -> str:
    """As `_count`, but from 1000 on three digits and k, M, G, ... for 10^3, 10^6, 10^9, ..."""
    if number is None or number < 1000:
        return _count(number)
    digits, exponent = f"{number:.2e}".split("e")
    thousands = min(int(exponent) // 3, len(_PREFIXES))
    tens = int(exponent) - 3 * thousands
    return f"{float(digits) * 10**tens:.{max(0, 2 - tens)}f} {_PREFIXES[thousands - 1]}"


def _samples(number: int) -> str:
    return number_of(number, "sample")


def _empty_table(title: str | None, show_footer: bool = True) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE, title_justify="left", show_footer=show_footer)


def _print(table: Table, notes: Iterable[str]) -> None:
    """The table, and lines of text below it."""
    screen = console()
    # a narrow screen wraps the lines; a cut number would be wrong
    screen.width = max(screen.width, table.__rich_measure__(screen, screen.options.update(max_width=1000)).maximum)
    screen.print(table)
    screen.print(*notes, sep="\n", soft_wrap=True)


def _table(network: str, shape: Iterable[int], classes: int, facts: NetworkCost) -> Table:
    table = _empty_table(f"{network}: input {_by(shape)}, {number_of(classes, 'class')}")
    # header, a layer's cell, the total
    columns: list[tuple[str, Callable[[LayerCost], str], str]] = [
        ("layer", lambda layer: layer.name, "total"),
        ("kind", lambda layer: layer.kind, ""),
        ("output", lambda layer: _by(layer.output_shape), ""),
        ("parameters", lambda layer: _count(layer.parameters), _count(facts.parameters)),
        ("multiply-adds", lambda layer: _count(layer.multiply_adds), _count(facts.multiply_adds)),
        ("W", lambda layer: _short(layer.work), _short(facts.work)),
        ("D", lambda layer: _count(layer.depth), _count(facts.depth)),
        ("W/D", lambda layer: _short(layer.average_parallelism), _short(facts.average_parallelism)),
        ("activations\n/ weights", lambda layer: _count(layer.activations_per_weight), ""),
        ("threshold\nbatch", lambda layer: _count(layer.threshold_batch), ""),
        (f"at batch\n{facts.samples:,}", lambda layer: layer.choice(facts.samples) or "", ""),
    ]
    for header, _, total in columns:
        table.add_column(header, total, justify="left" if header in ("layer", "kind") else "right", no_wrap=True)
    for layer in facts.layers:
        table.add_row(*(cell(layer) for _, cell, _ in columns))
    return table


def _notes(facts: NetworkCost) -> list[str]:
    samples = _samples(facts.samples)
    lines = [f"A forward pass: multiply-adds and activations for 1 sample, work W and depth D for {samples}."]
    convolutions = [layer for layer in facts.layers if layer.kind == "Conv2d"]
    if convolutions:
        multiply_adds = sum(layer.multiply_adds for layer in convolutions) / facts.multiply_adds
        parameters = sum(layer.parameters for layer in convolutions) / facts.parameters
        lines.append(f"Convolutions: {multiply_adds:.1%} of the multiply-adds, {parameters:.1%} of the parameters.")
    lines += [
        "Threshold batch: 2|w| / (|x| + |y|), for weights w without biases, a sample's input x and output y. Below it,",
        "splitting a layer's outputs (model) moves fewer values than all-reducing its gradient (data). Assumed: ring",
        "algorithms, bandwidth only (no latency), no overlap, reduce-scatter backward.",
    ]
    return lines


# -- with --mp -----------------------------------------------------------------------------------------------------
def _values(number: int) -> str:
    """All digits below a million, otherwise three."""
    return f"{number:,}" if number < 1_000_000 else _short(number)


def _of_ranks(numbers: Sequence[int], form: Callable[[int], str]) -> str:
    """One number if it is the same on all ranks, nothing if that is 0; else each, or of many the least and the most."""
    if len(set(numbers)) == 1:
        return form(numbers[0]) if numbers[0] else ""
    if len(numbers) > _SIDE_BY_SIDE:
        return f"{form(min(numbers)) or 0} .. {form(max(numbers))}"
    return " / ".join(form(number) or "0" for number in numbers)


_NOTES_OF_RANKS = [
    "Of all: more than 100% together where ranks have or do the same. Imbalance: the largest / the mean of the ranks."
]


def _notes_of_shares(ranks: int, samples: int) -> list[str]:
    several = "the least and the most of the ranks" if ranks > _SIDE_BY_SIDE else "rank 0, rank 1 and so on"
    return [
        f"Of each rank, in a step with {_samples(samples)}: parameters it has, work W of its part of the forward pass,",
        f"messages it sends and values in them. One number is the same on all ranks, several are {several}.",
        "Split: how a layer is divided, or follows: each rank does its part of what it gets; every rank: each does all",
        "of it; rank 0: that one alone has the branch.",
    ]


def _table_of_shares(network: str, ranks: int, shares: PlanShares) -> Table:
    title = f"{network} divided among {number_of(ranks, 'rank')}"
    table = _empty_table(title, show_footer=False)
    for header in ("layer", "split", "parameters", "W", "messages", "values\nforward", "values\nbackward"):
        table.add_column(header, justify="left" if header in ("layer", "split") else "right", no_wrap=True)
    rows = [(layer.name, layer.done, layer.shares) for layer in shares.layers]
    if any(share.messages for share in shares.loss):
        rows.append(("loss", "follows", shares.loss))
    for name, done, own in rows:
        table.add_row(
            name,
            done,
            _of_ranks([share.parameters for share in own], "{:,}".format),
            _of_ranks([share.work for share in own], _short),
            _of_ranks([share.messages for share in own], "{:,}".format),
            _of_ranks([share.values_forward for share in own], _values),
            _of_ranks([share.values_backward for share in own], _values),
        )
    return table


def _table_of_ranks(facts: NetworkCost, totals: Sequence[Share]) -> Table:
    """One line for each rank, and how uneven they are."""
    columns: list[tuple[str, Callable[[Share], str], Callable[[Share], int] | None]] = [
        ("rank", lambda own: f"{own.rank:,}", None),
        ("parameters", lambda own: f"{own.parameters:,}", lambda own: own.parameters),
        ("of all", lambda own: _percent(own.parameters, facts.parameters), None),
        ("W", lambda own: _short(own.work) or "0", lambda own: own.work),
        ("of all", lambda own: _percent(own.work, facts.work), None),
        ("messages", lambda own: f"{own.messages:,}", lambda own: own.messages),
        ("values\nforward", lambda own: _values(own.values_forward), lambda own: own.values_forward),
        ("values\nbackward", lambda own: _values(own.values_backward), lambda own: own.values_backward),
    ]
    table = _empty_table(None)
    for header, _, number in columns:
        footer = "imbalance" if header == "rank" else _imbalance([number(own) for own in totals]) if number else ""
        table.add_column(header, footer, justify="left" if header == "rank" else "right", no_wrap=True)
    for own in totals:
        table.add_row(*(cell(own) for _, cell, _ in columns))
    return table


def _percent(number: int, whole: int) -> str:
    return f"{number / whole:.1%}" if whole else ""


def _imbalance(numbers: Sequence[int]) -> str:
    return f"{max(numbers) * len(numbers) / sum(numbers):.2f}" if sum(numbers) else ""


# -- with --pp -----------------------------------------------------------------------------------------------------
def _table_of_pipeline(network: str, pipeline: PipelineCost) -> Table:
    table = _empty_table(of_pipeline.title(network, pipeline), show_footer=False)
    for header in of_pipeline.headers(pipeline):
        table.add_column(header, justify="left" if header in ("rank", "layers") else "right", no_wrap=True)
    for number, row in enumerate(of_pipeline.rows(pipeline), 1):
        table.add_row(*row, end_section=number == len(pipeline.ranks))
    return table

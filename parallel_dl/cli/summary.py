"""`parallel-dl summary`: a network's layers, and what each of them costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli.networks import network_for
from parallel_dl.cli.terminal import console
from parallel_dl.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from parallel_dl.cost import LayerCost, NetworkCost

_PREFIXES = "kMGTPEZYRQ"


def summary(
    network: Annotated[str, typer.Argument(help="Which network.")],
    dataset: Annotated[
        str | None, typer.Option(help="Where input shape and classes come from. [default: the network's, or digits]")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data set's files.")] = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples whose work and depth are counted, and for which data or model is chosen.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Print a network's layers with shapes, parameters, multiply-adds, work, depth, and whether splitting them pays."""
    from parallel_dl import cost, datasets, networks

    networks.require_known(network)
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: must be at least 1")
    shape, classes = networks.NETWORKS[network].input_shape, networks.NETWORKS[network].classes
    if dataset is None and data_dir is not None and shape is not None:
        raise InputError(f"--data-dir {data_dir}: belongs to --dataset, which is not given")
    if dataset is not None or shape is None or classes is None:
        data = datasets.load(dataset or "digits", data_dir)
        model = network_for(network, data, dataset or "digits")
        shape, classes = shape or data.input_shape, classes or data.classes
    else:
        model = networks.create(network)
    facts = cost.cost_of(model, shape, batch_size)
    if launch.mpirun_rank() != 0:  # in a user's mpirun every rank counts the same: one says it
        return
    if as_json:
        print(json.dumps(as_object(network, shape, classes, facts)))
    else:
        _print_table(network, shape, classes, facts)


def as_object(network: str, shape: Iterable[int], classes: int, facts: NetworkCost) -> dict[str, Any]:
    """The JSON object. What has no value is null."""
    return {
        "network": network,
        "input_shape": list(shape),
        "classes": classes,
        "batch_size": facts.samples,
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


def _print_table(network: str, shape: Iterable[int], classes: int, facts: NetworkCost) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{network}: input {_by(shape)}, {classes:,} classes",
        caption=_caption(facts),
        box=box.SIMPLE,
        title_justify="left",
        caption_justify="left",
        show_footer=True,
    )
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
    screen = console()
    # a narrow screen wraps the lines; a cut number would be wrong
    screen.width = max(screen.width, table.__rich_measure__(screen, screen.options.update(max_width=1000)).maximum)
    screen.print(table)


def _caption(facts: NetworkCost) -> str:
    samples = "1 sample" if facts.samples == 1 else f"{facts.samples:,} samples"
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
    return "\n".join(lines)

"""The tables of `parallel-dl summary`: the layers and what each costs, and with --mp what each rank has of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_dl.cli.report import new_table
from parallel_dl.errors import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.table import Table

    from parallel_dl.cost import Grid, LayerCost, NetworkCost, PlanShares, Share

_PREFIXES = "kMGTPEZYRQ"
_MOST_NAMES = 5
_SIDE_BY_SIDE = 4  # so many ranks' numbers stand side by side, those of more as the least and the most


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


def layers(network: str, shape: Iterable[int], classes: int, facts: NetworkCost) -> Table:
    """A line for each layer: its shape, and what a forward pass costs."""
    title = f"{network}: input {_by(shape)}, {number_of(classes, 'class')}"
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
    headers, _, totals = zip(*columns)
    table = new_table(title, headers, left=("layer", "kind"), footers=totals)
    for layer in facts.layers:
        table.add_row(*(cell(layer) for _, cell, _ in columns))
    return table


def notes_of_layers(facts: NetworkCost) -> list[str]:
    """What the columns of `layers` are."""
    from parallel_dl import nn

    samples = number_of(facts.samples, "sample")
    lines = [f"A forward pass: multiply-adds and activations for 1 sample, work W and depth D for {samples}."]
    convolutions = [layer for layer in facts.layers if layer.kind == "Conv2d"]
    if convolutions:
        multiply_adds = sum(layer.multiply_adds for layer in convolutions) / facts.multiply_adds
        parameters = sum(layer.parameters for layer in convolutions) / facts.parameters
        lines.append(f"Convolutions: {multiply_adds:.1%} of the multiply-adds, {parameters:.1%} of the parameters.")
    own = [layer.name for layer in facts.layers if layer.parameters and not hasattr(nn, layer.kind)]
    if own:
        lines.append(f"Multiply-adds are not known for your own layers ({_names(own)}), and not counted.")
    lines += [
        "Threshold batch: 2|w| / (|x| + |y|), for weights w without biases, a sample's input x and output y. Below it,",
        "splitting a layer's outputs (model) moves fewer values than all-reducing its gradient (data). Assumed: ring",
        "algorithms, bandwidth only (no latency), no overlap, reduce-scatter backward.",
    ]
    return lines


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + ", ..." * (len(names) > _MOST_NAMES)


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


NOTES_OF_RANKS = [
    "Of all: adds up to over 100% where ranks have or compute the same. Imbalance: largest / mean over the ranks."
]


def notes_of_shares(ranks: int, samples: int) -> list[str]:
    """What the columns of `shares` are."""
    several = "the least and the most of the ranks" if ranks > _SIDE_BY_SIDE else "rank 0, rank 1 and so on"
    return [
        f"Per rank, in a step with {number_of(samples, 'sample')}: its parameters, the work W of its share of the",
        "forward pass, the messages it sends and their values. One number holds for all ranks;",
        f"several are {several}.",
        "Split: how a layer is divided; follows: each rank computes its slice of the incoming activation; every rank:",
        "each computes the whole layer; rank 0: only this rank has the branch.",
    ]


def shares(network: str, ranks: int, found: PlanShares) -> Table:
    """A line for each layer: what each rank has, does and sends."""
    title = f"{network} divided among {number_of(ranks, 'rank')}"
    headers = ("layer", "split", "parameters", "W", "messages", "values\nforward", "values\nbackward")
    table = new_table(title, headers, left=("layer", "split"))
    rows = [(layer.name, layer.done, layer.shares) for layer in found.layers]
    if any(share.messages for share in found.loss):
        rows.append(("loss", "follows", found.loss))
    if any(share.messages for share in found.gradients):
        rows.append(("gradients", "every rank", found.gradients))
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


def ranks(facts: NetworkCost, totals: Sequence[Share]) -> Table:
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
    footers = [_imbalance([number(own) for own in totals]) if number else "" for _, _, number in columns]
    table = new_table(None, [header for header, _, _ in columns], left=("rank",), footers=["imbalance", *footers[1:]])
    for own in totals:
        table.add_row(*(cell(own) for _, cell, _ in columns))
    return table


NOTES_OF_MESSAGES = [
    "To its stage: activations and gradients of split layers, and sums of weight gradients. To other stages: its share",
    "of the activations at stage boundaries, and of their gradients.",
]


def messages(grid: Grid) -> Table:
    """Of a pipeline whose layers are split: what each rank does, and sends along both axes."""
    headers = ["rank", "stages", "W"]
    for where in ("to its stage", "to other stages"):
        headers += [f"messages\n{where}", "values\nforward", "values\nbackward"]
    table = new_table(None, headers, left=("rank", "stages"))
    for own in grid.ranks:
        numbers: list[str] = []
        for sent in (own.share, own.between):
            numbers += [f"{sent.messages:,}", _values(sent.values_forward), _values(sent.values_backward)]
        table.add_row(f"{own.rank:,}", ", ".join(map(str, own.stages)), _short(own.share.work) or "0", *numbers)
    return table


def _percent(number: int, whole: int) -> str:
    return f"{number / whole:.1%}" if whole else ""


def _imbalance(numbers: Sequence[int]) -> str:
    return f"{max(numbers) * len(numbers) / sum(numbers):.2f}" if sum(numbers) else ""

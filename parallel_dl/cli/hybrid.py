"""The flags of --hybrid: convolutions data parallel, fully connected layers model parallel, over the same ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl.cli.limits import require_count
from parallel_dl.errors import InputError, cut, unknown_name
from parallel_dl.launch.limits import MOST_RANKS
from parallel_dl.layout import HYBRIDS, Layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from parallel_dl.hybrid.traffic import Traffic
    from parallel_dl.nn import Module

Hybrid = Annotated[
    str | None,
    typer.Option("--hybrid", help="owt: convolutions data parallel, fully connected layers split. [default: none]"),
]
Ranks = Annotated[int | None, typer.Option("--ranks", help="Of --hybrid. [default: 1, or mpirun's ranks]")]
Scheme = Annotated[
    str | None,
    typer.Option("--scheme", help="Of --hybrid: a, b or c, how activations change hands. [default: a]"),
]
VariableBatch = Annotated[
    bool, typer.Option("--variable-batch", help="Of --hybrid: fully connected layers are updated after each part.")
]


def require_hybrid(
    hybrid: str | None,
    ranks: int | None,
    others: Mapping[str, int | None],
    scheme: str | None = None,
    variable_batch: bool = False,
) -> None:
    """Refuses what belongs to --hybrid without it; with it, an unknown one, the flags in `others`, and wrong ranks."""
    if hybrid is None:
        for flag, value in (("ranks", ranks), ("scheme", scheme), ("variable_batch", variable_batch or None)):
            if value is not None:
                given = None if value is True else cut(str(value))
                raise InputError(f"belongs to `hybrid`; valid is `hybrid` {HYBRIDS[0]}", flag, given)
        return
    if hybrid not in HYBRIDS:
        raise unknown_name("`hybrid`", hybrid, HYBRIDS)
    for flag, number in others.items():
        if number is not None:
            raise InputError(f"does not go with `hybrid` {hybrid}, whose ranks are those of --ranks", flag, number)
    require_count("ranks", ranks, most=MOST_RANKS)


def require_halves(network: Module, input_shape: Sequence[int], layout: Layout, split_output: bool = True) -> None:
    """Refuses a network without one of the halves, and splits that cannot be."""
    from parallel_dl.hybrid import halves_of

    halves = halves_of(network, input_shape)
    halves.plan(layout.dp, layout.split, split_output)


# -- summary -------------------------------------------------------------------------------------------------------
def traffic_for(
    network: Module, shape: Sequence[int], ranks: int, batch_size: int, splits: Mapping[str, str] | None
) -> Traffic:
    """`hybrid.traffic.traffic` of the flags."""
    from parallel_dl.hybrid.traffic import traffic

    return traffic(network, shape, ranks, batch_size, splits)


def as_object(found: Traffic) -> dict[str, Any]:
    """The JSON object of the key `hybrid`."""
    return {
        "name": HYBRIDS[0],
        "ranks": found.ranks,
        "batch_size": found.batch_size,
        "data_parallel_bytes": found.data_parallel,
        "hybrid_bytes": found.hybrid,
        "activations": found.activations,
        "activation_gradients": found.activation_gradients,
        "targets": found.targets,
        "fully_connected": found.fully_connected,
        "loss": found.loss,
        "convolution_gradients": found.convolution_gradients,
    }


def rows(found: Traffic) -> list[tuple[str, str, str]]:
    """Lines of a table: what is sent, bytes in pure data parallelism, bytes in the hybrid."""
    lines = [
        ("gradients, all-reduced", found.data_parallel, found.convolution_gradients),
        ("activations, to all others", 0, found.activations),
        ("their gradients, to the owners", 0, found.activation_gradients),
        ("targets", 0, found.targets),
        ("fully connected layers", 0, found.fully_connected),
        ("loss", 0, found.loss),
        ("in all", found.data_parallel, found.hybrid),
    ]
    return [(what, f"{ours:,}" if ours else "", f"{theirs:,}" if theirs else "") for what, ours, theirs in lines]


def notes(samples: str) -> list[str]:
    """What the table says, in lines."""
    return [
        f"Bytes that rank 0 passes to MPI in one iteration with {samples}, float32: of an all-reduce the array,",
        "of sends what is sent. In the hybrid the gradients are those of the layers before the Flatten.",
        "All three schemes send the same.",
    ]

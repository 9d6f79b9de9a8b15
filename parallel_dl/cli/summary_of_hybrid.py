"""`parallel-dl summary --hybrid`: what one rank passes to MPI in an iteration, as text and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallel_dl.cli.report import new_table
from parallel_dl.errors import number_of
from parallel_dl.layout import HYBRIDS

if TYPE_CHECKING:
    from rich.table import Table

    from parallel_dl.cost.hybrid import Traffic


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
        "fully_connected": found.fully_connected + found.partial_gradients,
        "loss": found.loss,
        "convolution_gradients": found.convolution_gradients,
    }


def table(network: str, found: Traffic) -> Table:
    """What is sent: bytes in pure data parallelism, bytes in the hybrid."""
    title = f"{network} on {number_of(found.ranks, 'rank')}: one weird trick"
    made = new_table(title, ("what is sent", "data parallel", "hybrid"), left=("what is sent",))
    for what, ours, theirs in (
        ("gradients, all-reduced", found.data_parallel, found.convolution_gradients),
        ("activations, to all other ranks", 0, found.activations),
        ("their gradients, back to the owners", 0, found.activation_gradients),
        ("targets", 0, found.targets),
        ("fully connected layers", 0, found.fully_connected + found.partial_gradients),
        ("loss", 0, found.loss),
        ("in all", found.data_parallel, found.hybrid),
    ):
        made.add_row(what, f"{ours:,}" if ours else "", f"{theirs:,}" if theirs else "")
    return made


def notes(samples: str) -> list[str]:
    """What the table says, in lines."""
    return [
        f"Bytes that rank 0 passes to MPI in one iteration with {samples}, in float32: the array of each all-reduce,",
        "the data of each send. In the hybrid, the gradients are those of the layers before the Flatten.",
        "All three schemes send the same.",
    ]

"""The output of `parallel-dl train`: a table of the run, and the ledger of its messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from parallel_dl.cli.report import new_table, show
from parallel_dl.cli.terminal import console
from parallel_dl.errors import number_of

if TYPE_CHECKING:
    from parallel_dl.trainer import Result

_ROUNDING = "In float32, rounding makes losses differ between layouts; compare layouts with --dtype float64."
_LEDGER = (
    "What the updates passed to MPI: each send, and the payload of each MPI collective (all_reduce: the array;",
    "all_gather: what the other ranks have; reduce_scatter: what they get).",
)


def print_result(facts: dict[str, Any], result: Result, method: str, rounds: bool) -> None:
    """The table of a run; `method` sums its gradients, and `rounds` says that float32 differs between layouts."""
    from rich.table import Table

    table = Table(title=f"{facts['network']} on {facts['dataset']}", show_header=False, title_justify="left")
    for row in (*_of_layout(facts, method), *_of_time(facts), *_of_losses(facts, result)):
        table.add_row(*row)
    console().print(table)
    if "ledger" in facts:
        _print_ledger(facts["ledger"])
    if rounds:
        console().print(_ROUNDING, soft_wrap=True)


def _of_layout(facts: dict[str, Any], method: str) -> Iterator[tuple[str, str]]:
    layout = facts["layout"]
    kinds = {"dp": "data parallel", "mp": "model parallel", "pp": "pipeline", "microbatches": "microbatches"}
    if "hybrid" in layout:
        of_halves = f"features data parallel {layout['dp']}, classifier model parallel {layout['dp']}"
        yield "ranks", f"{facts['ranks']} ({of_halves}, microbatches {layout['microbatches']})"
        updated = ", fully connected layers updated after each sub-batch" if layout["hybrid"]["variable_batch"] else ""
        yield "hybrid", f"one weird trick, scheme {layout['hybrid']['scheme']}{updated}"
    else:
        yield "ranks", f"{facts['ranks']} ({', '.join(f'{kind} {layout[key]}' for key, kind in kinds.items())})"
    if layout["schedule"]:
        yield "schedule", layout["schedule"]
    if layout["split"]:
        yield "layers split", ", ".join(f"{layer} {how}" for layer, how in layout["split"].items())
    if layout["dp"] > 1:
        yield "gradients summed by", {"window": "shared memory", "mpi": "MPI", "tree": "a fixed tree"}[method]


def _of_time(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "batch size", str(facts["batch_size"])
    yield "updates", f"{facts['steps']} in {facts['seconds']:.2f} s"
    yield "samples per second", f"{facts['samples_per_second']:,.0f}"
    if "stream" in facts:
        stream = facts["stream"]
        yield "input rate", f"{stream['rate']:,.6g} per second, {stream['seconds_waited']:.2f} s spent waiting"
        if stream["throughput"] is not None:
            taken, growth = stream["throughput"], stream["queue_growth"]
            grew = f"the queue grew by {growth:,.0f}" if growth >= 0.5 else "the queue did not grow"
            yield "steady state", f"{taken:,.0f} processed per second, {grew}"
        yield "queue at the end", number_of(stream["queue"], "sample")


def _of_losses(facts: dict[str, Any], result: Result) -> Iterator[tuple[str, str]]:
    losses, loss, accuracy = facts["losses"], facts["test_loss"], facts["test_accuracy"]
    ends = [losses[0], losses[-1]] if len(losses) > 1 else losses
    yield "loss", " -> ".join("not finite" if x is None else f"{x:.6f}" for x in ends)
    yield "test loss", ("not computed" if result.test_loss is None else "not finite") if loss is None else f"{loss:.6f}"
    yield "test accuracy", "none: the targets are not classes" if accuracy is None else f"{accuracy:.2%}"
    if facts["layout"].get("reproducible"):
        yield "reproducible: weights", facts["weights_sha256"]


def _print_ledger(rows: list[dict[str, Any]]) -> None:
    if not rows:
        console().print("ledger: nothing was sent")
        return
    words = ("axis", "layer", "direction", "call")
    headers = {key: key.replace("_", " ") for key in rows[0]}
    table = new_table("ledger", headers.values(), left=words, words=("layer",))
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row.values()))
    show(table, _LEDGER)

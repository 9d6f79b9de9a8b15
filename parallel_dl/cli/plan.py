"""`parallel-dl plan`: each rank's program for one step under a layout, and each layer's placements."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli.flags import BATCH_SIZE, AsJson, LayoutFlags, NetworkName, taking_flags
from parallel_dl.cli.layout import flags_of_ranks, layout_of, require_fits
from parallel_dl.cli.limits import flag_of, require_count
from parallel_dl.cli.networks import network_and_shape
from parallel_dl.cli.report import new_table, show
from parallel_dl.cli.terminal import console
from parallel_dl.errors import InputError, number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from parallel_dl import schedule as schedules
    from parallel_dl.layout import Layout
    from parallel_dl.mesh import Placement, State
    from parallel_dl.nn import Module
    from parallel_dl.splits import Plan, Step

_MOST_PROGRAMS = 64  # that are printed
_NOTES = (
    "Placements: what each rank has. all, whole: the whole array; replicated: the whole array, but a summand of its",
    "gradient; partial: a summand of it; samples: a share of the batch; features, rows, columns and axis (of the",
    "weight): a slice of the size given, by rank of the model axis. An arrow is a move: from what arrives to what the",
    "layer needs, or from what its own maths gives to what the next layer gets.",
)
_COLUMNS = ("layer", "stage", "split", "input", "weights", "output")


@taking_flags
def plan(
    network: NetworkName,
    flags: LayoutFlags,
    dataset: Annotated[
        str | None,
        typer.Option(help="Take input shape and classes from this data set. [default: the network's, or digits]"),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with the data set's files.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples in the global batch.")] = BATCH_SIZE,
    as_json: AsJson = False,
) -> None:
    """Show what each rank does in one training step, and which shard of each layer it has.

    It takes the layout flags of `train`. The programs are checked before they are printed. No rank is started.
    """
    from parallel_dl.schedule import check

    require_count("batch_size", batch_size)
    model, shape, _ = network_and_shape(network, dataset, data_dir)
    layout = layout_of(flags)
    require_fits(model, shape, layout)
    layout.require_microbatches(batch_size)
    from parallel_dl.splits import plan as plan_of_splits

    partial = layout.splits_layers and plan_of_splits(model, shape, layout.mp, layout.split).has_partial
    step = layout.plan(batch_size, partial=partial)
    report = check(step)
    if report.line is not None:
        raise InputError(f"{step.name}: {report.line}")
    if launch.mpirun_rank() != 0:  # in a user's mpirun every rank finds the same: one says it
        return
    layers = list(placements(model, shape, layout))
    if as_json:
        print(json.dumps(as_object(network, shape, layout, batch_size, step, report, layers)))
    else:
        _print(network, layout, batch_size, step, report, layers)


def as_object(
    network: str,
    shape: Sequence[int],
    layout: Layout,
    batch_size: int,
    step: schedules.Plan,
    report: schedules.Report,
    layers: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The JSON object; programs and peaks are those of all ranks, as MPI numbers them."""
    return {
        "network": network,
        "input_shape": list(shape),
        "batch_size": batch_size,
        "layout": layout.as_dict(),
        "ranks": layout.ranks,
        "programs": [line for line in step.lines() for _ in range(layout.mp)],
        "peak_live": [live for live in report.peak_live for _ in range(layout.mp)],
        "layers": list(layers),
    }


# -- placements ----------------------------------------------------------------------------------------------------
def placements(network: Module, shape: Sequence[int], layout: Layout) -> Iterator[dict[str, Any]]:
    """For each layer its name, stage and split, and what the ranks have of its input, weights and output, in words."""
    from parallel_dl.cost import cost_of, cut_stages
    from parallel_dl.schedule import make
    from parallel_dl.splits import plan as plan_of_splits

    steps: dict[str, Step] = {}
    stage_of: dict[str, int] = {}
    samples = "samples" if layout.dp > 1 else "all"
    after: Plan | None = None
    if layout.hybrid is not None:
        from parallel_dl.splits.cut_at_flatten import cut_at_flatten

        of_hybrid = cut_at_flatten(network, shape)
        after = of_hybrid.plan(layout.dp, layout.split)
        stage_of = dict.fromkeys(of_hybrid.classifier._modules, 1)
    elif layout.splits_layers:
        after = plan_of_splits(network, shape, layout.mp, layout.split)
    if after is not None:
        steps = {step.name: step for step in after.steps}
    if layout.is_pipelined:
        stages = make(layout.schedule_name, layout.pp, layout.microbatches, layout.chunks).stages
        cut = cut_stages(network, shape, stages, layout.stages)
        stage_of = {name: stage for stage in range(stages) for name in cut.layers(stage)}
    for layer in cost_of(network, shape).layers:
        step = steps.get(layer.name)
        shared = "all" if layout.hybrid and step else samples
        taken = made = "all"
        if step is not None:
            taken = _moved(step.before, step.division.input or step.before)
            made = _moved(step.division.output, step.after)
        yield {
            "name": layer.name,
            "stage": stage_of.get(layer.name.split(".")[0], 0),
            "split": str(step.way) if step is not None and step.way is not None else None,
            "input": _joined(shared, taken),
            "weights": _weights(step) if layer.parameters else "",
            "output": _joined(shared, made),
        }


def _joined(samples: str, of_model: str) -> str:
    if of_model == "all":
        return samples
    return of_model if samples == "all" else f"{samples}, {of_model.replace('all', 'whole')}"


def _moved(before: Placement, after: Placement) -> str:
    """What the ranks of the model axis have of an activation, before and after the moves."""
    return " -> ".join(dict.fromkeys((_words(before), _words(after))))


_AXES = ("samples", "features", "rows", "columns")


def _words(placement: Placement) -> str:
    """What each rank of the model axis has of an activation, with the sizes by rank."""
    words = dict.fromkeys(_state(state, _AXES) for state in placement.states)
    return ", ".join(filter(None, words)) or "all"


def _state(state: State, axes: Sequence[str] | None = None) -> str:
    """One state in words; nothing if it is invariant. `axes` are names of array axes, else they have numbers."""
    from parallel_dl.mesh import Partial, Replicated, Shard, Windows

    if isinstance(state, Shard | Windows):
        sizes = state.sizes if isinstance(state, Shard) else [part.stop - part.start for part in state.wanted]
        return f"{f'axis {state.axis}' if axes is None else axes[state.axis]} {_sizes(sizes or ())}".strip()
    return {Replicated: "replicated", Partial: "partial"}.get(type(state), "")


def _weights(step: Step | None) -> str:
    """The placements of a layer's weights; with names, if there are several."""
    named: dict[str, list[str]] = {}
    for name, _, placement in [] if step is None else step.parameters():
        states = () if placement is None else placement.states
        words = ", ".join(word for word in map(_state, states) if word) or "all"
        named.setdefault(words, []).append(name.rpartition(".")[2])
    if len(named) < 2:
        return next(iter(named), "all")
    return "; ".join(f"{', '.join(names)} {words}" for words, names in named.items())


def _sizes(sizes: Sequence[int]) -> str:
    return "+".join(map(str, sizes))


# -- for people ----------------------------------------------------------------------------------------------------
def _print(
    network: str,
    layout: Layout,
    batch_size: int,
    step: schedules.Plan,
    report: schedules.Report,
    layers: Sequence[dict[str, Any]],
) -> None:
    from parallel_dl.schedule import MEANINGS

    screen = console()
    what = f"{number_of(layout.ranks, 'rank')} ({flags_of_ranks(layout, flag_of)})"
    name = f"{step.name}, " if layout.is_pipelined or layout.hybrid else ""
    screen.print(f"{network}: {what}, {name}{number_of(batch_size, 'sample')}\n", soft_wrap=True, markup=False)
    alike: dict[str, list[int]] = {}
    for rank, line in enumerate(line for line in step.lines() for _ in range(layout.mp)):
        alike.setdefault(line, []).append(rank)
    labels = [_ranks(ranks) for ranks in alike.values()]
    width = max(map(len, labels))
    for label, line in list(zip(labels, alike))[:_MOST_PROGRAMS]:
        screen.print(f"{label.ljust(width)}  {line}", soft_wrap=True, markup=False, highlight=False)
    if len(alike) > _MOST_PROGRAMS:
        screen.print(f"... and {number_of(len(alike) - _MOST_PROGRAMS, 'more program')}")
    kinds = {action.kind for _, action in step.actions()}
    legend = "; ".join(f"{kind} {said}" for kind, said in MEANINGS.items() if kind in kinds)
    screen.print(f"\n{legend}.", soft_wrap=True)
    live = " to ".join(map(str, sorted({min(report.peak_live), max(report.peak_live)})))
    screen.print(f"Proved: complete, matched, no deadlock. Peak live activations of a rank: {live}.", soft_wrap=True)
    table = new_table(None, _COLUMNS, left=_COLUMNS, words=_COLUMNS[3:])
    for layer in layers:
        table.add_row(*("" if value is None else str(value) for value in layer.values()))
    show(table, _NOTES)


def _ranks(ranks: Sequence[int]) -> str:
    """Like "rank 0", "ranks 0 to 3" or "ranks 0, 1"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"

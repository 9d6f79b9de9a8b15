"""`parallel-dl schedule`: draws a pipelined step, reports idle time, and checks plans."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli.flags import AsJson, TimingFlags, taking_flags
from parallel_dl.cli.given import is_given
from parallel_dl.cli.limits import flag_of
from parallel_dl.cli.terminal import console
from parallel_dl.errors import InputError, cut, number_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from parallel_dl.schedule import Plan, Report, Simulation, Wait, Wire

_STYLES = {
    "F": "black on bright_blue",
    "B": "black on green",
    "I": "black on cyan",
    "W": "black on yellow",
    "R": "black on bright_cyan",
    "U": "black on magenta",
    "": "dim",
}
_PIPED = 2000  # characters of a row that no terminal has to show
_SHOWN = 12  # actions of the critical path
_MOST_ROWS = 64


@taking_flags
def schedule(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Argument(help="{schedules}, or FILE.py:NAME; not with --check.")] = None,
    pp: Annotated[int | None, typer.Option(help="Number of ranks.")] = None,
    microbatches: Annotated[int | None, typer.Option(help="Number of microbatches.")] = None,
    chunks: Annotated[
        int | None, typer.Option(help="Stages per rank, for the interleaved schedule. [default: 2]")
    ] = None,
    check: Annotated[
        str | None, typer.Option(metavar="FILE", help="Check the plan in this file (text, or PyTorch's CSV).")
    ] = None,
    timing: TimingFlags,
    blocking: Annotated[bool, typer.Option("--blocking", help="Make sends wait for their receive.")] = False,
    nonblocking: Annotated[
        bool, typer.Option("--nonblocking", help="Never make sends wait, not even those written in the file.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Draw a pipeline schedule with its idle time and memory, or check a plan file.

    Times are in any unit; by default a forward pass and each half of a backward pass take 1. No rank is started.
    """
    from parallel_dl.schedule import PlanError
    from parallel_dl.schedule import check as check_plan

    if blocking and nonblocking:
        raise InputError("--blocking and --nonblocking: only one of them")
    try:
        plan = _plan(name, pp, microbatches, chunks, check, True if blocking else False if nonblocking else None)
        report = check_plan(plan)
        if report.faults:
            raise InputError(f"{plan.name}: {report.line}")
        simulation, wire = _simulated(plan, timing, is_given(context, "message_bytes"))
    except PlanError as error:
        raise InputError(error.spoken(lambda field: field if field == "schedule" else flag_of(field))) from None
    if launch.mpirun_rank() == 0:  # in a user's mpirun every rank finds the same: one says it
        if as_json:
            print(json.dumps(as_object(plan, report, simulation)))
        elif check is None or report.ok:
            _print(plan, report, simulation, wire, draw=check is None)
    if check is not None and not report.ok:
        hint = "" if report.buffered else "; if sends never wait, pass --nonblocking"
        raise InputError(f"{plan.name}: {report.line}{hint}")


def _simulated(plan: Plan, timing: TimingFlags, has_bytes: bool) -> tuple[Simulation | None, Wire]:
    """The plan simulated with these times, None where it comes to a deadlock; and what a message takes."""
    from parallel_dl.schedule import Deadlock, Times, Wire, simulate

    speed = timing.bytes_per_second
    if speed is not None and not 1e-100 <= speed <= 1e100:
        raise InputError("must be a finite number above 0", "bytes_per_second", speed)
    texts = {name: getattr(timing, name) for name in ("forward", "backward_input", "backward_weight")}
    times = Times(**{name: _times(name, text) for name, text in texts.items()})
    for name, text in texts.items():
        count = text.count(",") + 1
        if count not in (1, plan.stages):
            said = f"has {count} times; expected one, or {plan.stages}, one per stage"
            raise InputError(said, name, cut(text))
    wire = Wire(timing.latency, 0.0 if speed is None else 1 / speed, timing.message_bytes, timing.eager_limit)
    _require_bytes(has_bytes, timing)
    try:
        return simulate(plan, times, wire, timing.input_rate), wire
    except Deadlock:
        return None, wire


def as_object(plan: Plan, report: Report, simulation: Simulation | None) -> dict[str, Any]:
    """The JSON object. What has no value, or none that is finite, is null."""

    def number(name: str) -> float | None:
        value = None if simulation is None else getattr(simulation, name)
        return value if value is not None and math.isfinite(value) else None

    streams = simulation is not None and simulation.input_rate is not None
    return {
        "name": plan.name,
        "pp": plan.ranks,
        "microbatches": plan.microbatches,
        "makespan": number("makespan"),
        "idle_fraction": number("idle_fraction"),
        "bubble_overhead": number("bubble_overhead"),
        "peak_live": list(report.peak_live),
        "latency": number("latency"),
        "throughput": number("steady_throughput" if streams else "throughput"),
        "concurrency": number("concurrency"),
        "overlap": number("overlap"),
        "deadlock": {"buffered": _circle(report.buffered), "rendezvous": _circle(report.rendezvous)},
        "programs": plan.lines(),
    }


def _circle(waits: Iterable[Wait]) -> list[dict[str, Any]] | None:
    return [{"rank": w.rank, "action": str(w.action), "waits_for": w.other} for w in waits] or None


# -- what is asked for ---------------------------------------------------------------------------------------------
def _plan(
    name: str | None,
    pp: int | None,
    microbatches: int | None,
    chunks: int | None,
    file: str | None,
    blocking: bool | None,
) -> Plan:
    from parallel_dl.schedule import SCHEDULES, make, read, with_messages

    numbers = {"--pp": pp, "--microbatches": microbatches, "--chunks": chunks}
    if file is not None:
        given = [f"{flag} {cut(str(value))}" for flag, value in {"NAME": name, **numbers}.items() if value is not None]
        if given:
            raise InputError(f"{given[0]}: not with --check, where the plan is in the file")
        return with_messages(read(file), blocking)
    if name is None:
        raise InputError(f"NAME is missing: expected one of {', '.join(SCHEDULES)}, or --check FILE")
    made = make(name, 1 if pp is None else pp, 1 if microbatches is None else microbatches, chunks)
    for flag in ("--pp", "--microbatches"):
        if numbers[flag] is None:
            raise InputError(f"{flag} is missing: how many {'ranks' if flag == '--pp' else 'microbatches'}")
    return with_messages(made, blocking)


def _require_bytes(given: bool, timing: TimingFlags) -> None:
    """Refuses a flag about the size of messages that does nothing without another one."""
    rate, limit = timing.bytes_per_second, timing.eager_limit
    if given and rate is None and limit is None:
        said = "needs `bytes_per_second` or `eager_limit`"
        raise InputError(said, "bytes", f"{timing.message_bytes:g}")
    for field, value in (("bytes_per_second", rate), ("eager_limit", limit)):
        if value is not None and not given:
            raise InputError("needs `bytes`", field, f"{value:g}")


def _times(field: str, text: str) -> float | list[float]:
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError("expected a number, or one per stage, like 1,2,1", field, cut(text)) from None
    for time in times:
        if not 0 <= time <= 1e100:
            raise InputError("must be finite and at least 0", field, cut(text))
    return times if "," in text else times[0]


# -- for people ----------------------------------------------------------------------------------------------------
def _print(plan: Plan, report: Report, simulation: Simulation | None, wire: Wire, draw: bool) -> None:
    screen = console()
    if not draw:
        actions = sum(map(len, plan.programs))
        counts = {"rank": plan.ranks, "stage": plan.stages, "microbatch": plan.microbatches, "action": actions}
        what = ", ".join(number_of(count, word) for word, count in counts.items())
        screen.print(f"{plan.name}: correct ({what})", soft_wrap=True, markup=False)
    if simulation is not None:
        if draw:
            _draw(plan, simulation)
        _figures(plan, simulation, wire)
    for line in _deadlocks(plan, report):
        screen.print(line, soft_wrap=True, markup=False)


def _draw(plan: Plan, simulation: Simulation) -> None:
    from rich.text import Text

    from parallel_dl.schedule import MEANINGS
    from parallel_dl.schedule.grid import grid

    screen = console()
    label = len(f"rank {plan.ranks - 1}  ")
    width = max(20, screen.width - label) if screen.is_terminal else _PIPED
    sizes = f"{number_of(plan.ranks, 'rank')}, {number_of(plan.microbatches, 'microbatch')}"
    screen.print(f"{plan.name}: {sizes}, time from left to right\n", soft_wrap=True)
    rows = grid(simulation, width)
    for rank, row in enumerate(rows[:_MOST_ROWS]):
        line = Text(f"rank {rank}".ljust(label))
        for piece in row:
            line.append(piece.text, _STYLES[piece.kind])
        screen.print(line, soft_wrap=True)
    if len(rows) > _MOST_ROWS:
        screen.print(f"... and {number_of(len(rows) - _MOST_ROWS, 'more rank')}")
    kinds = {action.kind for _, action in plan.actions()}
    legend = Text("\n")
    for kind, meaning in MEANINGS.items():
        if kind in kinds and kind in _STYLES:
            legend.append(kind, _STYLES[kind]).append(f" {meaning}  ")
    screen.print(legend.append(". idle", _STYLES[""]), soft_wrap=True)


def _figures(plan: Plan, simulation: Simulation, wire: Wire) -> None:
    from rich import box
    from rich.table import Table

    screen = console()
    table = Table(box=box.SIMPLE)
    for header in ("rank", "busy", "idle", "idle share", "peak live"):
        table.add_column(header, justify="right", no_wrap=True)
    facts = zip(simulation.busy, simulation.idle, simulation.idle_shares, simulation.peak_live)
    for rank, (busy, idle, share, live) in list(enumerate(facts))[:_MOST_ROWS]:
        table.add_row(str(rank), _number(busy), _number(idle), _percent(share), str(live))
    screen.print(table)
    path = [str(event.action) for event in simulation.critical_path]
    shown = path if len(path) <= _SHOWN else [*path[: _SHOWN // 2], "...", *path[-(_SHOWN // 2) :]]
    lines = [
        f"makespan         {_number(simulation.makespan)}",
        f"idle             {_percent(simulation.idle_fraction)} of the step, "
        f"{_percent(simulation.bubble_overhead)} of the work",
        f"concurrency      {_number(simulation.concurrency)} of {number_of(plan.ranks, 'rank')} at work on average",
        f"overlap          {_percent(simulation.overlap)} of the step: a forward beside another microbatch's backward",
        f"latency          {_number(simulation.latency)} for one microbatch forward through all stages",
        f"throughput       {_rate(simulation.throughput)}, over the whole step",
        f"critical path    {' '.join(shown)} ({number_of(len(path), 'action')})",
        *_of_stream(simulation),
        "",
        "Simulated: each rank does one action at a time; a message takes "
        f"{_number(wire.seconds)}{' (three latencies: above the eager limit)' if wire.is_rendezvous else ''},",
        "any number of them at once, taking no time on the ranks"
        + (" unless a send blocks." if plan.blocking else "."),
        "Peak live: most activations of a stage that still await their backward.",
    ]
    screen.print(*lines, sep="\n", soft_wrap=True, markup=False)


def _of_stream(simulation: Simulation) -> list[str]:
    if simulation.input_rate is None:
        return []
    first = (
        f"input rate       {_number(simulation.input_rate)}: microbatch j arrives at j / rate and queues before stage 0"
    )
    if simulation.steady_throughput is None or simulation.queue_growth is None:
        return [first, "steady state     none: too few microbatches, or more than half of them alive at a time"]
    return [
        first,
        f"steady state     {_rate(simulation.steady_throughput)} into stage 0, "
        f"the queue grows by {_number(simulation.queue_growth)}",
    ]


def _deadlocks(plan: Plan, report: Report) -> Sequence[str]:
    if report.buffered:
        return [f"Deadlock with any sends: {_said(report.buffered)}."]
    if report.rendezvous:
        return [
            "No deadlock with buffered sends.",
            f"Deadlock with rendezvous sends, which wait for their receive: {_said(report.rendezvous)}.",
        ]
    sends = "buffered or rendezvous sends" if plan.blocking else "sends that do not block"
    return [f"No deadlock with {sends}."]


def _said(waits: Iterable[Wait]) -> str:
    return ", ".join(map(str, waits))


def _number(number: float) -> str:
    return f"{number:.6g}" if math.isfinite(number) else "-"


def _rate(number: float) -> str:
    text = _number(number)
    return f"{text} microbatch{'' if text == '1' else 'es'} per unit of time"


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "-"

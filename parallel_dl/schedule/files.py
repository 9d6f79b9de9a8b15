"""Plan files: one line per rank, with actions separated by blanks; and PyTorch's CSV, with one cell per time step."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

from parallel_dl.errors import InputError
from parallel_dl.files import read_text
from parallel_dl.schedule.actions import Action, Plan, PlanError

MOST_BYTES = 16 << 20  # of a plan

# of sharded data parallelism, in PyTorch's files: they move no microbatch between stages
_SKIPPED = re.compile(r"[0-9]+(UNSHARD|RESHARD|REDUCE_GRAD)[0-9]*")
_OVERLAPPED = re.compile(r"\((.*)\)OVERLAP_F_B")  # "(0F3;3B1)OVERLAP_F_B": a forward and a backward at the same time


def parse(text: str, name: str = "plan") -> Plan:
    """A plan from its text form, or from PyTorch's CSV; PlanError names the rank and what cannot be read.

    A text with commas is CSV; empty cells are time steps in which a rank is idle, and two actions that PyTorch overlaps
    are put one after the other. Empty lines and lines that begin with # are ignored. Messages that are written out are
    blocking; if there are none, `lowering.with_messages` adds them.
    """
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip() and not line.lstrip().startswith("#")]
    if any("," in line for line in lines):
        try:
            rows = list(csv.reader(lines, skipinitialspace=True))
        except csv.Error as error:
            raise PlanError(f"{name}: cannot be read as CSV: {error}") from None
    else:
        rows = [line.split() for line in lines]
    if not rows:
        raise PlanError(f"{name}: has no line with actions")
    programs = []
    for rank, row in enumerate(rows):
        cells = [cell.strip() for joint in row for cell in _OVERLAPPED.sub(r"\1", joint.strip()).split(";")]
        try:
            programs.append(tuple(Action.parse(cell) for cell in cells if cell and not _SKIPPED.fullmatch(cell)))
        except PlanError as error:
            raise PlanError(f"{name}, rank {rank}: {error}") from None
    plan = Plan(name, tuple(programs))
    return replace(plan, blocking=plan.has_messages)


def read(path: str | Path) -> Plan:
    """The plan in a file, see `parse`; PlanError also when it cannot be read."""
    try:
        text = read_text(path, "a plan in text or CSV", MOST_BYTES)
    except InputError as error:
        raise PlanError(str(error)) from None
    return parse(text, str(path))


def write(plan: Plan) -> str:
    """The text form, which `parse` reads: a line for each rank."""
    return "".join(f"{line}\n" for line in plan.lines())

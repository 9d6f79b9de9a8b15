"""The output of `parallel-dl verify`: a table for people, one JSON object for programs, and the exit status."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from parallel_dl.cli.report import finite, new_table, show
from parallel_dl.cli.terminal import console
from parallel_dl.errors import number_of
from parallel_dl.schedule import is_asynchronous


def report(found: Sequence[dict[str, Any]], as_json: bool, stress: int | None = None, dtype: str = "float64") -> int:
    """Prints what was found, under stress with that seed; gives the exit status. Noise is that of cells of `dtype`."""
    cells = [cell for part in found for cell in part.get("cells", ())]
    mutants = [verdict for part in found for verdict in part.get("mutants", ())]
    equal = all(cell["equal"] for cell in cells)
    caught = all(verdict["caught"] for verdict in mutants)
    floors = [cell["noise"] for cell in cells if cell.pop("dtype") == dtype and cell["noise"] is not None]
    facts: dict[str, Any] = {"equal": equal, "cells": cells} if cells or not mutants else {}
    facts["noise_floor"] = max(floors, default=None)
    if mutants:
        noise = max([part["noise"] for part in found if "noise" in part])
        errors = [v["error"] for v in mutants if v["error"] is not None and math.isfinite(v["error"])]
        facts |= {"mutants": mutants, "noise_floor": max([noise, *floors])}
        facts["smallest_mutant"] = min(errors, default=None)
        noise = max([noise, *(floors if dtype == "float64" else [])])  # bugs are planted in float64
        facts["distance"] = min(errors) / noise if errors and noise else None
    if stress is not None:
        facts["stress"] = stress
    if as_json:
        print(json.dumps(finite(facts)))
    else:
        if cells:
            _print_cells(cells)
        if mutants:
            _print_mutants(mutants, facts)
        elif facts["noise_floor"] is not None:
            line = f"noise floor {facts['noise_floor']:.1e}: the error of a serial run that sums in another order"
            console().print(line, soft_wrap=True)
        if stress is not None:
            console().print(f"under stress, with seed {stress}: ranks delayed around every call, buffers poisoned")
    return 0 if equal and caught else 1


def layout_text(layout: dict[str, Any]) -> str:
    """A layout, as `Layout.as_dict` gives it, for people."""
    if layout.get("reproducible"):
        return f"{layout_text({**layout, 'reproducible': False})} reproducible"
    if "hybrid" in layout:
        variable = ", variable batch" if layout["hybrid"]["variable_batch"] else ""
        scheme = f"{layout['hybrid']['name']} {layout['hybrid']['scheme']} {layout['dp']}{variable}"
        return f"{scheme}, {number_of(layout['microbatches'], 'microbatch')}"
    parts = [f"{key} {layout[key]}" for key in ("dp", "mp", "pp") if layout[key] > 1] or ["serial"]
    if layout["schedule"]:
        parts.append(layout["schedule"])
    if layout["split"]:
        parts += [f"{layer}={way}" for layer, way in layout["split"].items()]
    return f"{' '.join(parts)}, {number_of(layout['microbatches'], 'microbatch')}"


_MANY = 40  # cells, beyond which a table has a line for each network and number of ranks


def _print_cells(cells: list[dict[str, Any]]) -> None:
    screen = console()
    many = len(cells) > _MANY
    left = ("network", "layouts", "layout", "equal", "of")
    headers = ("network", "ranks", left[1] if many else left[2], "equal", "largest error", "of", "seconds")
    table = new_table(None, headers, left, words=("layout", "of"))
    groups: dict[Any, list[dict[str, Any]]] = {}
    for number, cell in enumerate(cells):
        groups.setdefault((cell["network"], cell["ranks"]) if many else number, []).append(cell)
    for group in groups.values():
        worst = max((cell["worst"] for cell in group), key=lambda worst: worst["error"])
        same = sum(cell["equal"] for cell in group)
        table.add_row(
            group[0]["network"],
            str(group[0]["ranks"]),
            str(len(group)) if many else layout_text(group[0]["layout"]),
            ("yes" if same == len(group) else "NO") if not many else f"{same} of {len(group)}",
            f"{worst['error']:.1e}",
            f"{worst['quantity']}, step {worst['step']}" if worst["error"] else "",
            f"{sum(cell['seconds'] for cell in group):.2f}",
        )
    show(table)
    for cell in cells:
        if not cell["equal"]:
            told = cell["divergence"]["text"] if cell["divergence"] else f"worst is {cell['worst']['quantity']}"
            line = f"{cell['network']}, {layout_text(cell['layout'])}: DIFFERENT; {told}"
            screen.print(line, soft_wrap=True, markup=False)
    for network, note in dict.fromkeys((cell["network"], cell["note"]) for cell in cells if cell["note"]):
        screen.print(f"{network}: {note}", soft_wrap=True, markup=False)
    bounds = [cell["worst"]["bound"] for cell in cells]
    against = "bit by bit" if not bounds[0] else f"within {min(bounds):.0e} of the magnitudes that were added"
    if max(bounds) > min(bounds):
        against += ", or within ten times the rounding noise"
    count = sum(cell["equal"] for cell in cells)
    if any(cell["worst"]["error"] and is_asynchronous(cell["layout"]["schedule"] or "naive") for cell in cells):
        screen.print("pipedream updates after each microbatch; its steps count these updates", soft_wrap=True)
    screen.print(f"{count} of {len(cells)} equal to the serial run, {against}", soft_wrap=True)


def _print_mutants(mutants: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    headers = ("planted bug", "caught", "named", "diagnosis")
    table = new_table(None, headers, left=headers, words=("planted bug", "diagnosis"))
    for verdict in mutants:
        said = verdict["diagnosis"].partition("; likely ")[2] or verdict["diagnosis"]
        table.add_row(verdict["name"], *("yes" if verdict[key] else "NO" for key in ("caught", "named")), said)
    screen = console()
    show(table)
    counts = {key: sum(verdict[key] for verdict in mutants) for key in ("caught", "named")}
    lines = [f"{counts['caught']} of {len(mutants)} caught, {counts['named']} named"]
    if facts["distance"] is not None:
        lines.append(
            f"noise floor in float64 {facts['smallest_mutant'] / facts['distance']:.1e}, smallest error of a bug "
            f"{facts['smallest_mutant']:.1e}: "
            f"{facts['distance']:.0e} times as large"
        )
    screen.print(*lines, sep="\n", soft_wrap=True)

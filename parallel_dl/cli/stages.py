"""The stages that the flags of a pipeline ask for; what is refused begins with the flag."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from parallel_dl.errors import InputError, cut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parallel_dl.cost import Stages
    from parallel_dl.nn import Module
    from parallel_dl.schedule import Plan


def stages_for(
    network: Module,
    input_shape: Sequence[int],
    schedule: str,
    pp: int,
    microbatches: int,
    chunks: int | None,
    starts: Sequence[str] | None,
) -> tuple[Plan, Stages]:
    """The plan of --schedule, and the network cut into its stages; `starts` is what --stage says."""
    from parallel_dl.cost.stages import cut_stages
    from parallel_dl.schedule import PlanError, make

    try:
        plan = make(schedule, pp, microbatches, chunks)
    except PlanError as error:
        raise InputError(_of_plan(str(error), schedule)) from None
    try:
        return plan, cut_stages(network, input_shape, plan.stages, starts)
    except InputError as error:
        ranks = f"--pp {pp}" if chunks is None else f"--pp {pp} --chunks {chunks}"
        raise InputError(_of_stages(str(error), ranks, plan.stages, starts or ())) from None


def _of_plan(line: str, schedule: str) -> str:
    if line.startswith("unknown schedule "):
        return line.replace("schedule", "--schedule", 1)
    return f"--{line}" if line.split()[0] in ("pp", "microbatches", "chunks") else f"--schedule {cut(schedule)}: {line}"


def _of_stages(line: str, ranks: str, stages: int, starts: Sequence[str]) -> str:
    """Nothing is said twice: the flag takes the place of what the line begins with."""
    for layer in starts:
        if line.startswith(f"stage at {cut(layer)}: "):
            return f"--{line.replace(' at ', ' ', 1)}"
    where = " ".join(f"--stage {cut(layer)}" for layer in starts)
    if line.startswith("stages begin at "):
        return f"{where}: {line.rpartition(': ')[2]}"
    if ranks == f"--pp {stages}":
        line = line.removeprefix(f"{stages} stage{'s'[: stages - 1]}: ")
    return f"{where if re.search('stage (at|before) ', line) else ranks}: {line}"

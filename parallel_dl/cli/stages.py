"""The stages given by the flags of a pipeline; refusals begin with the flag."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_dl.errors import InputError, cut, number_of

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
        raise error if error.field else InputError(error.marked, "schedule", cut(schedule)) from None
    try:
        return plan, cut_stages(network, input_shape, plan.stages, starts)
    except InputError as error:
        if error.field:
            raise
        ranks = f"`pp` {pp}" if chunks is None else f"`pp` {pp} `chunks` {chunks}"
        said = error.marked.removeprefix(f"{number_of(pp, 'stage')}: ")  # --pp has said how many
        raise InputError(f"{ranks}: {said}") from None

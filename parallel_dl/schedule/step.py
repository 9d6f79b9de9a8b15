"""The plan of a whole step, serial, accumulated, replicated or pipelined, from the numbers of a layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from parallel_dl.schedule.actions import ALL, Plan
from parallel_dl.schedule.lowering import with_messages
from parallel_dl.schedule.one_weird_trick import one_weird_trick, sub_batches
from parallel_dl.schedule.reductions import replicated, with_all_reduce, with_update
from parallel_dl.schedule.schedules import Schedule, make


def plan_of_step(
    schedule: str | Schedule | None = None,
    pp: int = 1,
    microbatches: int = 1,
    chunks: int | None = None,
    replicas: int = 1,
    partial: bool = False,
) -> Plan:
    """The plan of `pp` x `replicas` ranks, replicas of a stage side by side, with messages, sums and updates.

    With `partial`, gradients are summed even on one replica: ranks that split layers have summands.

    Without a schedule, one rank does everything: `0F0 0B0 U`, or with more microbatches `0F0 0B0 0F1 0B1 U`. PlanError
    as in `make`.
    """
    plan = make("naive" if schedule is None else schedule, pp, microbatches, chunks)
    return with_messages(replicated(with_update(plan), replicas, partial))


def plan_of_hybrid_step(scheme: str, microbatches: Sequence[Sequence[int]], variable_batch: bool = False) -> Plan:
    """The plan of "One weird trick", from the number of samples that each rank has of each microbatch.

    Sub-batches without samples are omitted. InputError for an unknown scheme.
    """
    cut = [sub_batches(scheme, shares) for shares in microbatches]
    parts = [[number for number, part in enumerate(of_microbatch) if part.size] for of_microbatch in cut]
    ranks = len(microbatches[0])
    plan = with_update(one_weird_trick(ranks, parts, variable_batch), 0 if variable_batch else ALL)
    return replace(with_all_reduce(plan, 0) if ranks > 1 else plan, name=f"one weird trick, scheme {scheme}")

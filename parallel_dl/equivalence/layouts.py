"""Every layout of so many ranks that a network can have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parallel_dl.cost.stages import cut_stages
from parallel_dl.errors import InputError
from parallel_dl.hybrid import SCHEMES, halves_of
from parallel_dl.layout import Layout
from parallel_dl.nn import Conv2d, Module
from parallel_dl.schedule import ASYNCHRONOUS, SCHEDULES, PlanError, make
from parallel_dl.splits import plan

MICROBATCHES = 4  # cut a batch unevenly, and are a multiple of 1, 2 and 4 stages


def layouts_of(
    ranks: int, network: Module, input_shape: Sequence[int], microbatches: int | None = None
) -> list[Layout]:
    """All products dp x mp x pp of `ranks`, pipelines with every schedule that computes what a serial run does.

    `microbatches` is their number everywhere; None takes 4, or the number of stages where that does not divide it.
    Left out are layouts that this network, for samples (*input_shape), cannot have: too few layers for the stages.
    """
    found = []
    for layout in (*_products(ranks, microbatches), *_other_splits(ranks, network, microbatches)):
        try:
            if layout.splits_layers:
                plan(network, input_shape, layout.mp, layout.split)
            if layout.hybrid:
                halves_of(network, input_shape).plan(layout.dp)
            if layout.is_pipelined:
                stages = make(layout.schedule_name, layout.pp, layout.microbatches, layout.chunks).stages
                cut_stages(network, input_shape, stages)
        except (InputError, PlanError):
            continue
        found.append(layout)
    return found


def _products(ranks: int, microbatches: int | None) -> Iterator[Layout]:
    for pp in _divisors(ranks):
        for mp in _divisors(ranks // pp):
            dp = ranks // pp // mp
            count = microbatches or (MICROBATCHES if MICROBATCHES % pp == 0 else pp)
            if pp == 1:
                yield Layout(dp=dp, mp=mp, microbatches=count)
                continue
            for schedule in SCHEDULES:
                if schedule not in ASYNCHRONOUS:
                    yield Layout(dp=dp, mp=mp, pp=pp, microbatches=count, schedule=schedule)
    for scheme in SCHEMES:
        yield Layout(dp=ranks, hybrid="owt", scheme=scheme)


def _other_splits(ranks: int, network: Module, microbatches: int | None) -> Iterator[Layout]:
    """Splits of convolutions that are no default of theirs: each way for all, and one way after another."""
    convolutions = [name for name, layer in network.named_modules() if isinstance(layer, Conv2d)]
    if ranks == 1 or not convolutions:
        return
    splits = [{"features": way} for way in ("rows", "columns", "filters", "channels")]
    if len(convolutions) > 1:
        first, second = convolutions[:2]
        splits += [{first: "filters", second: "rows"}, {first: "rows", second: "filters"}]
    for split in splits:
        yield Layout(mp=ranks, microbatches=microbatches or MICROBATCHES, split=split)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]

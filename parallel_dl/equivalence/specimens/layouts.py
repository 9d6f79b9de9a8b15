"""Every layout that a network can have on a number of ranks; for many networks and numbers, a covering set."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import pairwise

from parallel_dl.cost.stages import cut_stages
from parallel_dl.equivalence.runs.replayed import program_of
from parallel_dl.equivalence.specimens.networks import SPECIMENS
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.nn import Branches, Conv2d, Linear, Module
from parallel_dl.partition import LEAVES
from parallel_dl.reproducible import cut_into_leaves
from parallel_dl.schedule import SCHEDULES, SCHEMES, PlanError, make
from parallel_dl.splits import plan
from parallel_dl.splits.cut_at_flatten import cut_at_flatten

MICROBATCHES = 4  # cut a batch unevenly, and are a multiple of 1, 2 and 4 stages
IMAGE_WAYS = ("rows", "columns", "filters", "channels", "rows-columns")
PRIMES = (5, 7)
FEW = ("mlp_deep", "inception")  # networks for 5 and 7 ranks
REPRODUCIBLE = (*FEW, "rowwise", "norms")  # networks for reproducible layouts
GRIDS = (("rows-columns", "rows"), ("2x3", "3x2"))  # tiles that are not those of the next convolution
FULLY_CONNECTED_WAYS = ("output", "input", "output:whole")


def layouts_of(
    ranks: int,
    network: Module,
    input_shape: Sequence[int],
    microbatches: int | None = None,
    reproducible: bool = False,
) -> list[Layout]:
    """All products dp x mp x pp of `ranks`, pipelines with every schedule, hybrids, and splits by name.

    `microbatches` is their number everywhere; None takes 4, or the number of stages where that does not divide it.
    Left out are layouts that this network, for samples (*input_shape), cannot have: too few layers for the stages; and,
    unless they are asked for, reproducible ones, which take several times as long.
    """
    candidates = [*_products(ranks, microbatches), *_named_splits(ranks, network, microbatches)]
    if reproducible:
        candidates += _reproducible(ranks, microbatches)
    return [layout for layout in candidates if is_possible(layout, network, input_shape)]


def covering_set(
    ranks: int,
    networks: Mapping[str, tuple[Module, Sequence[int]]],
    microbatches: int | None = None,
    variations: Container[str] = (),
) -> list[tuple[str, Layout]]:
    """(name, layout) of networks, given with the shape of a sample: what `verify --all` runs on that many ranks.

    Shipped networks have all products and hybrids, and of each other kind of layout one: splits by name, alone, beside
    replicas and beside stages, and what is compared with a serial program of its own. Specimens have all layouts of two
    ranks, and of three and four one of each kind. On 5 and 7 ranks, which divide hardly any width, only the networks in
    `FEW` are run. Only those in `REPRODUCIBLE` have reproducible layouts, which are slow. On two to four ranks,
    `variations` of networks have one layout of each other kind. Which layout stands for its kind changes with the
    network and the number of ranks.
    """
    found: list[tuple[str, Layout]] = []
    for number, (name, (network, shape)) in enumerate(networks.items()):
        varies = name in variations
        if (ranks in PRIMES and name not in FEW) or ((name in SPECIMENS or varies) and ranks not in (2, 3, 4, *PRIMES)):
            continue
        kinds: dict[tuple[object, ...], list[Layout]] = {}
        for layout in layouts_of(ranks, network, shape, microbatches, name in REPRODUCIBLE and ranks <= 4):
            if not (varies and layout.reproducible):
                kinds.setdefault(_kind(layout), []).append(layout)
        for layouts in kinds.values():
            if varies:
                whole = False
            elif name in SPECIMENS:
                whole = ranks == 2
            else:
                whole = _is_product(layouts[0]) and ranks not in PRIMES
            chosen = layouts if whole else [layouts[(number + ranks) % len(layouts)]]
            found += [(name, layout) for layout in chosen]
    return found


def _is_product(layout: Layout) -> bool:
    own = layout.variable_batch or layout.is_asynchronous
    return not (layout.split or layout.reproducible or own)


def _kind(layout: Layout) -> tuple[object, ...]:
    """What it divides, and how it computes: not the schedule, the scheme, or which layer is split how."""
    asynchronous = layout.is_asynchronous
    tiles = layout.mp > 3 and "rows-columns" in (layout.split or {}).values()
    divides = layout.dp > 1, layout.mp > 1, layout.pp > 1, layout.hybrid, bool(layout.split), tiles
    return (*divides, layout.reproducible, layout.variable_batch, asynchronous)


def is_possible(layout: Layout, network: Module, input_shape: Sequence[int]) -> bool:
    """Whether the network, for samples (*input_shape), can have this layout, and it can be compared."""
    try:
        program_of(network, layout)
        if layout.reproducible:
            network = copy.deepcopy(network)
            cut_into_leaves(network, input_shape)
        if layout.splits_layers:
            plan(network, input_shape, layout.mp, layout.split)
        if layout.hybrid:
            cut_at_flatten(network, input_shape).plan(layout.dp)
        if layout.is_pipelined:
            stages = make(layout.schedule_name, layout.pp, layout.microbatches, layout.chunks).stages
            cut_stages(network, input_shape, stages)
    except (InputError, PlanError):
        return False
    return True


def _count(pp: int, microbatches: int | None) -> int:
    return microbatches or (MICROBATCHES if MICROBATCHES % pp == 0 else pp)


def _products(ranks: int, microbatches: int | None) -> Iterator[Layout]:
    for pp in _divisors(ranks):
        for mp in _divisors(ranks // pp):
            dp, count = ranks // pp // mp, _count(pp, microbatches)
            if pp == 1:
                yield Layout(dp=dp, mp=mp, microbatches=count)
                continue
            for schedule in SCHEDULES:
                yield Layout(dp=dp, mp=mp, pp=pp, microbatches=count, schedule=schedule)
    for scheme in SCHEMES:
        yield Layout(dp=ranks, hybrid="owt", scheme=scheme)
    for scheme in SCHEMES[1:] if ranks > 1 else ():
        yield Layout(dp=ranks, hybrid="owt", scheme=scheme, variable_batch=True)


def _reproducible(ranks: int, microbatches: int | None) -> Iterator[Layout]:
    if ranks == 1 or LEAVES % ranks:
        return
    for dp, mp, pp in dict.fromkeys(((ranks, 1, 1), (1, ranks, 1), (2, ranks // 2, 1), (1, ranks // 2, 2))):
        count = microbatches or pp  # few, so that every leaf has samples, and the order of sums matters
        yield Layout(dp=dp, mp=mp, pp=pp, microbatches=count, reproducible=True)


def _named_splits(ranks: int, network: Module, microbatches: int | None) -> Iterator[Layout]:
    """Splits that are not the default, over all ranks, and in turn with two replicas and with two stages."""
    for number, split in enumerate(_splits(network) if ranks > 1 else ()):
        yield Layout(mp=ranks, microbatches=_count(1, microbatches), split=split)
        if ranks % 2 == 0 and ranks > 2:
            dp, pp = ((2, 1), (1, 2))[number % 2]
            yield Layout(dp=dp, mp=ranks // 2, pp=pp, microbatches=_count(pp, microbatches), split=split)


def _splits(network: Module) -> Iterator[Mapping[str, str]]:
    """Each way for all convolutions, one way after another; each for all fully connected layers; samples; towers."""
    layers = dict(network.named_modules())
    convolutions = [name for name, layer in layers.items() if isinstance(layer, Conv2d)]
    if convolutions:
        yield from ({"features": way} for way in IMAGE_WAYS)
    if len(convolutions) > 1:
        first, second = convolutions[:2]
        yield from ({first: "filters", second: "rows"}, {first: "rows", second: "filters"})
        yield {first: "filters", second: "columns"}
        yield from ({first: one, second: other} for one, other in GRIDS)
    if any(isinstance(layer, Linear) for layer in layers.values()):
        yield from ({"classifier": way} for way in FULLY_CONNECTED_WAYS)
        if not convolutions:  # before the Flatten
            yield from ({"features": way} for way in FULLY_CONNECTED_WAYS)
    yield from _along_samples(network)
    for name, layer in layers.items():
        if isinstance(layer, Branches):
            yield {name: "towers", "classifier": "input"}
            return


def _along_samples(network: Module) -> Iterator[Mapping[str, str]]:
    """Data parallelism of all layers, which follow the first; One weird trick's scheme (a); after a sum of summands."""
    children = network._modules
    yield {next(iter(children)): "samples"}
    if any(isinstance(layer, Conv2d) for layer in children.values()):
        yield {"features": "samples", "classifier": "output"}
    for (name, layer), following in pairwise(children.items()):
        if isinstance(layer, Linear):
            yield {name: "input", following[0]: "samples"}
            return


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]

"""--mp and --split: how many ranks share one copy of the network, and how each layer is divided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_dl.cli.limits import require_count
from parallel_dl.errors import InputError, cut
from parallel_dl.launch.limits import MOST_RANKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from parallel_dl.nn import Module
    from parallel_dl.splits import Plan


def parse_splits(split: Sequence[str] | None) -> dict[str, str] | None:
    """Layer -> how, of the values of --split; None when there are none: the plan then takes its own."""
    found: dict[str, str] = {}
    for text in split or ():
        layer, *how = (part.strip() for part in text.split("="))
        if len(how) != 1 or not layer or not how[0]:
            raise InputError(f"`split` {cut(text)}: expected LAYER=HOW, like fc1=output")
        if layer in found:
            raise InputError(
                f"`split` {cut(text)}: {cut(layer)} is given twice, as {cut(layer)}={cut(found[layer])} before"
            )
        found[layer] = how[0]
    return found or None


def require_mp(mp: int | None, split: Sequence[str] | None) -> int:
    """How many ranks --mp asks for, 1 without it; refuses less, and --split where nothing is divided."""
    ranks = 1 if mp is None else mp
    require_count("mp", ranks, most=MOST_RANKS)
    if split and ranks == 1:
        raise InputError(f"`split` {cut(split[0])}: needs `mp` 2 or more")
    return ranks


def plan_for(
    network: Module,
    input_shape: Sequence[int],
    ranks: int,
    splits: Mapping[str, str] | None,
    split_output: bool = True,
) -> Plan:
    """`parallel_dl.splits.plan` of the flags."""
    from parallel_dl.splits import plan

    return plan(network, input_shape, ranks, splits, split_output)

"""Bugs of hybrids: sums of the ranks' summands, and places of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from parallel_dl.equivalence.mutants.mutant import Mutant, replaced
from parallel_dl.equivalence.mutants.networks import HYBRID
from parallel_dl.hybrid import one_weird_trick
from parallel_dl.hybrid.exchange import Reduction
from parallel_dl.schedule import SubBatch


def _only_own_summand(stack: ExitStack) -> None:
    """What the other ranks add to the gradient of an owner's activations is forgotten."""

    def make(before: Any) -> Any:
        def wrong(reduction: Reduction) -> np.ndarray:
            before(reduction)
            return reduction._summands[0]

        return wrong

    replaced(stack, Reduction, "wait", make)


def _parts_out_of_place(stack: ExitStack) -> None:
    """The samples of a sub-batch are taken for others: for their masks and targets."""

    def make(before: Any) -> Any:
        def wrong(scheme: str, shares: Sequence[int]) -> list[SubBatch]:
            return [dataclasses.replace(part, indices=part.indices[::-1]) for part in before(scheme, shares)]

        return wrong

    replaced(stack, one_weird_trick, "sub_batches", make)


MUTANTS: tuple[Mutant, ...] = (
    Mutant("hybrid: a rank's own summand only", "images", HYBRID, _only_own_summand, ("gradient of the output of",)),
    Mutant("hybrid: parts taken for others", "images", HYBRID, _parts_out_of_place, ("loss",)),
)

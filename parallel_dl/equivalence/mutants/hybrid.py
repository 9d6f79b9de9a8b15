"""Bugs of hybrids: sums of the ranks' summands, and places of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from parallel_dl.equivalence.mutants.model_parallel import dropped, movement
from parallel_dl.equivalence.mutants.mutant import Mutant, exchanged
from parallel_dl.equivalence.mutants.networks import HYBRID
from parallel_dl.hybrid import one_weird_trick
from parallel_dl.hybrid.exchange import Exchange, Posted
from parallel_dl.schedule import SubBatch


def _only_own_summand(stack: ExitStack) -> None:
    """What a rank adds to the gradient of others' activations is lost: on its way, or in the first split layer."""
    exchanged(Exchange, "start_reduction", _own_alone)(stack)
    movement("replicate", dropped)(stack)


def _own_alone(right: Any, exchange: Exchange, sub_batch: SubBatch, gradient: np.ndarray) -> Posted:
    own = sub_batch.rows(exchange.comm.rank)
    summand = np.zeros_like(gradient)
    summand[own] = gradient[own]
    return right(exchange, sub_batch, summand)


def _parts_out_of_place(right: Any, scheme: str, shares: Sequence[int]) -> list[SubBatch]:
    """The samples of a sub-batch are taken for others: for their masks and targets."""
    return [dataclasses.replace(one, indices=one.indices[::-1]) for one in right(scheme, shares)]


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "hybrid: a rank's own summand only",
        "images",
        HYBRID,
        _only_own_summand,
        ("gradient of the output of",),
    ),
    Mutant(
        "hybrid: parts taken for others",
        "images",
        HYBRID,
        exchanged(one_weird_trick, "sub_batches", _parts_out_of_place),
        ("loss",),
    ),
)

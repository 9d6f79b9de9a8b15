"""The three schemes of "One weird trick" as data: which samples the fully connected layers get in each step.

K ranks have a share of the batch each, on which they run the convolutions. (Krizhevsky 2014, arXiv 1404.5997, section
4.) Each rank sends its samples of a part to all others, so a part is on every rank, in the order of the ranks:

    a    one part: the whole batch
    b    K parts: the share of rank 0, of rank 1, ...
    c    K parts: one K-th of every share

Shares, and the pieces of a share in scheme c, are those of `partition`: they may differ by one, and be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from parallel_dl import partition
from parallel_dl.errors import unknown_name
from parallel_dl.layout import SCHEMES


@dataclass(frozen=True)
class Part:
    """The samples of one step: of the share of rank r those in `own[r]`, counted from the start of the share."""

    own: tuple[slice, ...]
    places: np.ndarray
    """(samples,) where they are in the global batch"""

    @property
    def sizes(self) -> list[int]:
        """How many samples each rank sends, by rank."""
        return [own.stop - own.start for own in self.own]

    @property
    def size(self) -> int:
        """How many samples there are."""
        return len(self.places)

    def rows(self, rank: int) -> slice:
        """Which of them are the samples of `rank`."""
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])


def parts_of(scheme: str, shares: Sequence[int]) -> list[Part]:
    """The parts in their order, for ranks whose shares have these numbers of samples; a part may be empty.

    InputError for an unknown scheme.
    """
    require_scheme(scheme)
    ranks = len(shares)
    if scheme == "a":
        own = [[slice(0, size) for size in shares]]
    elif scheme == "b":
        own = [[slice(0, size if rank == turn else 0) for rank, size in enumerate(shares)] for turn in range(ranks)]
    else:
        own = [[partition.share(size, ranks, step) for size in shares] for step in range(ranks)]
    firsts = list(accumulate(shares, initial=0))
    return [
        Part(
            tuple(slices),
            np.concatenate([np.arange(first + s.start, first + s.stop) for first, s in zip(firsts, slices)]),
        )
        for slices in own
    ]


def require_scheme(scheme: str) -> None:
    """InputError, with the nearest valid one, for an unknown scheme."""
    if scheme not in SCHEMES:
        raise unknown_name("`scheme`", scheme, SCHEMES)


# -- what is sent --------------------------------------------------------------------------------------------------
def largest_outbound(scheme: str, shares: Sequence[int], values: int) -> int:
    """The most values that one rank sends in one step, with `values` in one sample's activations.

    With equal shares of n samples on K ranks (K - 1) n `values` in schemes a and b, which grows with K; in scheme c,
    when K divides n, (K - 1) / K of n `values`, so less than one share whatever K is.
    """
    return max((len(shares) - 1) * size * values for part in parts_of(scheme, shares) for size in part.sizes)


def received(shares: Sequence[int], rank: int, values: int) -> int:
    """The values of activations that `rank` gets in one iteration, the same in all schemes: those of all others."""
    return (sum(shares) - shares[rank]) * values

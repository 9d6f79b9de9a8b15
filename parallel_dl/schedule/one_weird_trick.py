"""The three schemes of "One weird trick" as programs: convolutions by data, fully connected layers split, K ranks.

Stage 0 has the convolutions, stage 1 the fully connected layers, and every rank computes both: stage 0 for its share of
the batch, stage 1 for one sub-batch after another, each with samples of all ranks. (Krizhevsky 2014, arXiv 1404.5997,
section 4.) `0SF0:k` posts a rank's samples of sub-batch k to all others, `1RF0:k` waits for those of all; `1SB0:k`
posts the gradients to the owners of the samples, `0RB0:k` waits for them and adds them up, in the order of the ranks.

    a    one sub-batch: the whole batch
    b    K sub-batches: the share of rank 0, of rank 1, ...
    c    K sub-batches: one K-th of every share

Shares, and the chunks of a share in scheme c, are those of `partition`: they may differ by one, and be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from parallel_dl import partition
from parallel_dl.errors import unknown_name
from parallel_dl.schedule.actions import Action, Plan

SCHEMES = ("a", "b", "c")


@dataclass(frozen=True)
class SubBatch:
    """The samples of one step, in the order of the ranks: of the share of rank r those in `own[r]`, counted there."""

    own: tuple[slice, ...]
    indices: tuple[int, ...]
    """of its samples, in the global batch"""

    @property
    def sizes(self) -> list[int]:
        """The number of samples that each rank sends, by rank."""
        return [own.stop - own.start for own in self.own]

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.indices)

    def rows(self, rank: int) -> slice:
        """Which of them are the samples of `rank`."""
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])


def sub_batches(scheme: str, shares: Sequence[int]) -> list[SubBatch]:
    """The sub-batches in their order, for ranks whose shares have these numbers of samples; some may be empty.

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
        SubBatch(
            tuple(slices),
            tuple(index for first, s in zip(firsts, slices) for index in range(first + s.start, first + s.stop)),
        )
        for slices in own
    ]


def require_scheme(scheme: str) -> None:
    """InputError, with the nearest valid one, for an unknown scheme."""
    if scheme not in SCHEMES:
        raise unknown_name("`scheme`", scheme, SCHEMES)


def one_weird_trick(ranks: int, microbatches: Sequence[Sequence[int]], variable_batch: bool = False) -> Plan:
    """Forward and backward on this many ranks, given the numbers of the non-empty sub-batches of each microbatch.

    Each microbatch goes through the scheme separately. The next sub-batch travels while one is computed, and the
    gradients of one while the next goes forward. With `variable_batch`, stage 1 is updated after each sub-batch: an
    asynchronous pass.
    """
    program = []
    for j, parts in enumerate(microbatches):
        program.append(Action(0, "F", j))
        program += [Action(0, "SF", j, part) for part in parts[:1]]
        for number, part in enumerate(parts):
            program.append(Action(1, "RF", j, part))
            program += [Action(0, "SF", j, following) for following in parts[number + 1 : number + 2]]
            program.append(Action(1, "F", j, part))
            program += [Action(0, "RB", j, before) for before in parts[:number][-1:]]
            program += [Action(1, "B", j, part), Action(1, "SB", j, part)]
            if variable_batch:
                program.append(Action(1, "U", j, part))
        program += [Action(0, "RB", j, last) for last in parts[-1:]]
        program.append(Action(0, "B", j))
    return Plan("one weird trick", (tuple(program),) * ranks)


# -- what is sent --------------------------------------------------------------------------------------------------
def largest_outbound(scheme: str, shares: Sequence[int], values: int) -> int:
    """The most values that one rank sends in one step, with `values` values in one sample's activations.

    With equal shares of n samples on K ranks (K - 1) n `values` in schemes a and b, which grows with K; in scheme c,
    when K divides n, (K - 1) / K of n `values`, so less than one share whatever K is.
    """
    return max((len(shares) - 1) * size * values for part in sub_batches(scheme, shares) for size in part.sizes)


def received(shares: Sequence[int], rank: int, values: int) -> int:
    """The number of activation values that `rank` gets in one iteration: those of all others, in every scheme."""
    return (sum(shares) - shares[rank]) * values

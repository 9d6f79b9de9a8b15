"""Cut an epoch into global batches, these into microbatches, and each microbatch into one share per rank.

Nothing but (seed, epoch) decides the order, and every cut is contiguous, so a microbatch is the same set of samples
whatever the number of ranks:

    order of the epoch    5 2 8 | 0 7 1 | 3 6 4 | 9                 global batches of 3, the last one shorter
    a global batch        [5 2] [8]                                 m = 2 microbatches
    rank 0, rank 1        5|2    8|-                                each one over 2 ranks; shares may be empty
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from parallel_dl.errors import InputError, one_of, up_to
from parallel_dl.partition import share

ORDER_STREAM = 0x6F72646572  # "order": keeps the shuffle apart from other streams keyed by the same seed


@dataclass(frozen=True, eq=False, slots=True)
class Share:
    """One rank's samples of one microbatch: copies, possibly none.

    x: (k, *sample shape), y: (k, *target shape), of the loader's types; first: index of the first of these k samples
    within the global batch; size: number of samples of the whole global batch, by which the loss divides; of_all:
    number of samples of the microbatch on all ranks (0 if not needed).
    """

    x: np.ndarray
    y: np.ndarray
    first: int
    size: int
    of_all: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """One rank's part of a global batch of `size` samples, the `step`-th of its epoch, in m microbatches."""

    step: int
    size: int
    microbatches: list[Share]

    @property
    def x(self) -> np.ndarray:
        """The samples of the only microbatch; ValueError if there are several."""
        return self._only().x

    @property
    def y(self) -> np.ndarray:
        """The targets of the only microbatch; ValueError if there are several."""
        return self._only().y

    @property
    def first(self) -> int:
        """Index within the global batch of the only microbatch's first sample here; ValueError if there are several."""
        return self._only().first

    def _only(self) -> Share:
        if len(self.microbatches) != 1:
            raise ValueError(f"this batch has {len(self.microbatches)} microbatches: take x, y and first from each")
        return self.microbatches[0]


class Loader:
    """The batches of every epoch, as seen by rank `rank` of `ranks`.

    x: (n, ...) samples, y: (n, ...) targets, any types. batch_size: samples of the *global* batch, over all ranks. With
    drop_last, a shorter last batch is dropped. Without shuffle, the order is that of x. With `leaves`, a multiple of
    ranks, each microbatch is cut into that many leaves, and each rank has the same number of them (see `partition`).

    Raises InputError for lengths that differ, no samples, no whole batch with drop_last, or a number out of range.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        microbatches: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        leaves: int | None = None,
    ) -> None:
        self.x, self.y = np.asarray(x), np.asarray(y)
        if self.x.ndim == 0 or self.y.ndim == 0 or len(self.x) != len(self.y):
            raise InputError(f"x of shape {self.x.shape} and y of shape {self.y.shape}: needs equally many samples")
        if len(self.x) == 0:
            raise InputError(f"x of shape {self.x.shape}: needs at least one sample")
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.seed = _whole("seed", seed, 0, 2**64)
        self.ranks = _whole("ranks", ranks, 1)
        self.rank = _whole("rank", rank, 0, self.ranks)
        self.microbatches = _whole("microbatches", microbatches, 1)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.leaves = leaves
        if leaves is not None and _whole("leaves", leaves, 1) % self.ranks:
            raise InputError(f"leaves {leaves}: must be a multiple of the {self.ranks} ranks")
        if drop_last and self.batch_size > len(self.x):
            raise InputError(
                f"batch_size {self.batch_size} with drop_last: {up_to(len(self.x))}, the number of samples"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches in an epoch."""
        whole, rest = divmod(len(self.x), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def order(self, epoch: int) -> np.ndarray:
        """The (n,) sample indices in the order of `epoch`: a function of (seed, epoch) alone.

        It sorts random keys instead of using Generator.permutation: NumPy guarantees the bits of Philox forever, but
        not its shuffling.
        """
        epoch = _whole("epoch", epoch, 0, 2**64)
        if not self.shuffle:
            return np.arange(len(self.x))
        stream = np.random.Philox(
            key=np.array([self.seed, epoch], dtype=np.uint64), counter=np.array([0, 0, 0, ORDER_STREAM], np.uint64)
        )
        return np.argsort(stream.random_raw(len(self.x)), kind="stable")

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (0, 1, ...) from step `start`; skipped steps copy nothing."""
        start = _whole("start", start, 0, self.steps_per_epoch + 1)
        order = self.order(epoch)
        return (self._batch(order, step) for step in range(start, self.steps_per_epoch))

    def _batch(self, order: np.ndarray, step: int) -> Batch:
        indices = order[step * self.batch_size : (step + 1) * self.batch_size]
        size, parts = len(indices), []
        for m in range(self.microbatches):
            microbatch = share(size, self.microbatches, m)
            own = share(microbatch.stop - microbatch.start, self.ranks, self.rank, self.leaves)
            first = microbatch.start + own.start
            chosen = indices[first : microbatch.start + own.stop]
            parts.append(Share(self.x[chosen], self.y[chosen], first, size, microbatch.stop - microbatch.start))
        return Batch(step, size, parts)


def _whole(name: str, value: int, lowest: int, end: int | None = None) -> int:
    """`value` as an int in range(lowest, end), or an InputError that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = lowest - 1
    if number < lowest or (end is not None and number >= end):
        span = one_of([lowest]) if end == lowest + 1 else f"expected {lowest} to {None if end is None else end - 1}"
        raise InputError(
            f"{name} {value!r}: {span if end is not None else f'expected a whole number, at least {lowest}'}"
        )
    return number

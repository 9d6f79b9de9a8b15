"""Training loops in NumPy on imagined ranks, as `parallel-dl compare` records them: a right one, and wrong ones.

The network is linear, the loss the squared error; `shares` are the numbers of samples that the ranks have of a batch.
"""

import numpy as np

from parallel_dl.equivalence.scripts import ScriptRun
from parallel_dl.equivalence.scripts.files import BEFORE, GRADIENT, LOCAL, WEIGHT, Part, Update
from parallel_dl.mesh.placement import slices

IN, OUT, DATA = 5, 3, 400
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((DATA, IN)), RANDOM.standard_normal((DATA, OUT))
X_TEST, Y_TEST = RANDOM.standard_normal((DATA, IN)), RANDOM.standard_normal((DATA, OUT))
TEST = 10_000  # a sample of the test data is this plus its index
BEFORE_BACKWARD, BEFORE_STEP = [0, 2], [2, 0]  # where a loop calls its two collectives


class Loop:
    """The right loop: each rank computes its share, and the gradients are summed. Mistakes override its parts."""

    steps = 4
    calls = BEFORE_STEP
    updates_of: dict[int, int] = {}  # noqa: RUF012  rank -> how many it makes, where that is not all

    def __init__(self, shares, dtype="float64"):
        self.shares, self.dtype, self.size = tuple(shares), dtype, len(shares)
        self.batch = sum(shares)

    # -- what mistakes change ------------------------------------------------------------------------------------------
    def seed(self, rank):
        return 1

    def order(self):
        return np.random.default_rng(2).permutation(DATA)

    def samples(self, rank, step):
        whole = self.order()[step * self.batch : (step + 1) * self.batch]
        return whole[slices(self.shares)[rank]]

    def total(self, rank, mine):
        return self.batch

    def summed(self, local):
        """The gradients that each rank updates with, from those that each has computed."""
        return [sum(local)] * self.size

    def left(self, gradients):
        """What is still there of an update's gradients when the next ones are added."""
        return 0.0

    def rate(self, rank):
        return 0.05

    def evaluated(self, rank, step):
        return []

    # -- the loop ------------------------------------------------------------------------------------------------------
    def run(self, nudge=False):
        weights = [self.start(rank) for rank in range(self.size)]
        updates, left = [[] for _ in range(self.size)], [0.0] * self.size
        for step in range(self.steps):
            mine = [self.samples(rank, step) for rank in range(self.size)]
            found = [self.gradient(weights[rank], mine[rank], rank) for rank in range(self.size)]
            local = [gradient + more for (gradient, _), more in zip(found, left)]
            used = self.summed(local)
            left = [self.left(gradient) for gradient in used]
            for rank in range(self.size):
                after = weights[rank] - self.rate(rank) * used[rank].astype(self.dtype)
                if nudge and not step:
                    after = (after * (1 + np.finfo(self.dtype).eps)).astype(self.dtype)
                if step < self.updates_of.get(rank, self.steps):
                    update = self.record(rank, weights[rank], local[rank], used[rank], after)
                    update.losses, update.samples = [found[rank][1]], [int(one) for one in mine[rank]]
                    update.evaluated = [TEST + int(one) for one in self.evaluated(rank, step)]
                    update.calls = list(self.calls) if step else [self.calls[0], 0]
                    updates[rank].append(update)
                weights[rank] = after
        return ScriptRun(self.size, 0, "", updates)

    def start(self, rank):
        return (np.random.default_rng(self.seed(rank)).standard_normal((OUT, IN + 1)) * 0.5).astype(self.dtype)

    def gradient(self, weights, mine, rank):
        """Of weights and bias together, and the loss."""
        data = np.concatenate([X, X_TEST[:0]]), Y
        test = [one - TEST for one in mine if one >= TEST]
        x = X_TEST[test] if test else data[0][mine]
        y = Y_TEST[test] if test else data[1][mine]
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(self.dtype)
        errors = x @ weights.T - y.astype(self.dtype)
        total = max(self.total(rank, mine), 1)
        return (2 * errors.T @ x / total).astype(self.dtype), float((errors**2).sum() / total)

    def record(self, rank, before, local, used, after):
        arrays = {}
        for kind, values in ((BEFORE, before), (LOCAL, local), (GRADIENT, used), (WEIGHT, after)):
            arrays[f"{kind}/weight"], arrays[f"{kind}/bias"] = values[:, :IN].copy(), values[:, IN].copy()
        return Update(arrays, {"weight": Part((OUT, IN)), "bias": Part((OUT,))})


def ranks_with_samples(shares):
    return sum(share > 0 for share in shares)


def are_equal(shares):
    return len(set(shares)) == 1


# -- mistakes ----------------------------------------------------------------------------------------------------------
class NoAllReduce(Loop):
    calls = (0, 0)

    def summed(self, local):
        return local


class SummedAfterUpdate(NoAllReduce):
    calls = BEFORE_BACKWARD


class LocalMeansSummed(Loop):
    def total(self, rank, mine):
        return len(mine)


class LocalMeansAveraged(LocalMeansSummed):
    def summed(self, local):
        return [sum(local) / self.size] * self.size


class LocalMeansNotReduced(LocalMeansSummed):
    calls = (0, 0)

    def summed(self, local):
        return local


class SummedTwice(Loop):
    def summed(self, local):
        return [sum(local) * self.size] * self.size


class DividedOnceTooOften(Loop):
    def summed(self, local):
        return [sum(local) / self.size] * self.size


class AllComputeAll(Loop):
    def samples(self, rank, step):
        return self.order()[step * self.batch : (step + 1) * self.batch]


class StepOnRank0(Loop):
    def run(self, nudge=False):
        self.updates_of = dict.fromkeys(range(1, self.size), 0)
        return super().run(nudge)


class SeedOfRank(Loop):
    def seed(self, rank):
        return 1 + rank


class AnotherSeed(Loop):
    def seed(self, rank):
        return self.size


class GradientsStay(Loop):
    def left(self, gradients):
        return gradients


class AnotherOrder(Loop):
    def order(self):
        return np.random.default_rng(2 + self.size).permutation(DATA)


class TestData(Loop):
    """The last rank that has samples takes them from the test data."""

    def samples(self, rank, step):
        found = super().samples(rank, step)
        return found + TEST if self.size > 1 and rank == self.odd else found

    @property
    def odd(self):
        return max(rank for rank, share in enumerate(self.shares) if share)

    def evaluated(self, rank, step):
        return np.arange(DATA)


class UnknownData(TestData):
    def evaluated(self, rank, step):
        return []


class FrozenOnRank1(Loop):
    def record(self, rank, before, local, used, after):
        update = super().record(rank, before, local, used, after)
        if rank == 1:
            del update.arrays["local/bias"], update.arrays["gradient/bias"]
        return update


class OneIsMissing(Loop):
    """The gradient of the last rank with samples is not in the sum."""

    def summed(self, local):
        odd = max(rank for rank, share in enumerate(self.shares) if share)
        if self.size == 1:
            return local
        return [sum(one for rank, one in enumerate(local) if rank != odd)] * self.size


class Rank0sAlone(Loop):
    def summed(self, local):
        return [local[0]] * self.size


class RateTimesRanks(Loop):
    def rate(self, rank):
        return 0.05 * self.size


class RateOfRank1(Loop):
    def rate(self, rank):
        return 0.1 if rank == 1 else 0.05


class FewerUpdates(Loop):
    def run(self, nudge=False):
        self.updates_of = dict.fromkeys(range(self.size), self.steps - 1) if self.size > 1 else {}
        return super().run(nudge)


class BatchOfEachRank(Loop):
    """The batch grows with the number of ranks."""

    def __init__(self, shares, dtype="float64"):
        super().__init__([share * len(shares) for share in shares], dtype)

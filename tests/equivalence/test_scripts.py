"""Which mistake a script has, from what its ranks wrote down: runs made in NumPy, no MPI, no process."""

import dataclasses

import loops
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parallel_dl.equivalence.scripts import ScriptRun, compare_runs
from parallel_dl.equivalence.scripts.compared import ANOTHER_BATCH, DIFFERENT, EQUAL, FAILED, NOTHING, not_deterministic
from parallel_dl.equivalence.scripts.files import Part, Update, read, write

SHARES = [(6, 6), (7, 5), (12, 0), (4, 4, 4), (5, 4, 3), (0, 7, 5), (3, 3, 3, 3), (5, 1, 0, 6), (3, 3, 3, 0)]
DTYPES = ["float64", "float32"]
shares = st.lists(st.integers(0, 6), min_size=2, max_size=4).filter(sum).map(tuple)
dtypes = st.sampled_from(DTYPES)


def compared(kind, shares, dtype="float64"):
    """The verdict on a loop: `kind` on one rank, and on as many as there are shares."""
    serial = kind([sum(shares)], dtype)
    return compare_runs(serial.run(), serial.run(nudge=True), kind(shares, dtype).run())


@settings(max_examples=60)
@given(shares, dtypes)
def test_the_right_loop_is_equal(shares, dtype):
    verdict = compared(loops.Loop, shares, dtype)
    assert (verdict.verdict, verdict.updates, verdict.cause) == (EQUAL, loops.Loop.steps, "")
    assert verdict.error <= (1e-5 if dtype == "float32" else 1e-10)
    assert verdict.line.startswith("equal: 4 updates, worst error ")


def always(shares):
    return True


def several(shares):
    return loops.ranks_with_samples(shares) > 1


# mistake -> (of these shares it changes something, what is different, words of the cause)
GRADIENT = "the gradient of weight"
MISTAKES = {
    loops.NoAllReduce: (always, GRADIENT, "own gradient, whose sum is the serial one: no all-reduce before the update"),
    loops.SummedAfterUpdate: (always, GRADIENT, "they are summed after the update, not before"),
    loops.LocalMeansSummed: (several, GRADIENT, "the means over each rank's own samples are summed ("),
    loops.LocalMeansAveraged: (
        lambda shares: not loops.are_equal(shares),
        GRADIENT,
        "are averaged, but the shares are unequal (",
    ),
    loops.LocalMeansNotReduced: (several, GRADIENT, "each rank updates with the gradient of its own mean: no all-red"),
    loops.SummedTwice: (always, GRADIENT, "{ranks} times the serial gradient: a factor 1/{ranks} is missing"),
    loops.DividedOnceTooOften: (several, GRADIENT, "1/{ranks} of the serial gradient: it is divided by the number of"),
    loops.AllComputeAll: (always, GRADIENT, "every rank computes all samples of the batch: the loader lacks rank= and"),
    loops.StepOnRank0: (always, "the number of updates", "only 0 updates where others make 4: is step() called on"),
    loops.SeedOfRank: (always, "the first values of weight", "with other weights than rank 0: another seed?"),
    loops.AnotherSeed: (always, "the first values of weight", "at the start depend on the number of ranks: another"),
    loops.GradientsStay: (always, GRADIENT, "the gradients of the update before are still there, and are summed again"),
    loops.AnotherOrder: (always, GRADIENT, "the ranks compute other samples than the serial run: another order"),
    loops.TestData: (several, GRADIENT, "{odd} that the serial run does not have here, which are those of the evalua"),
    loops.UnknownData: (several, GRADIENT, "{odd} that the serial run does not have here"),
    loops.FrozenOnRank1: (always, "the gradient of bias", "rank 1 has no gradient of bias: is it frozen there, or not"),
    loops.OneIsMissing: (
        lambda shares: loops.ranks_with_samples(shares) > 2,
        GRADIENT,
        "the gradient of rank {last} is missing in the sum",
    ),
    loops.Rank0sAlone: (
        lambda shares: shares[0] and several(shares),
        GRADIENT,
        "all ranks update with the gradient of rank 0 alone",
    ),
    loops.RateTimesRanks: (always, "weight after the update", "the gradients are equal, so it is the update itself"),
    loops.RateOfRank1: (always, "weight after the update", "only rank 1 has other weights after the update"),
    loops.FewerUpdates: (always, "the number of updates", "3 updates, serially 4: the number depends on the ranks'"),
}


def require_named(mistake, shares, dtype):
    _, what, words = MISTAKES[mistake]
    verdict = compared(mistake, shares, dtype)
    last = max(rank for rank, share in enumerate(shares) if share)
    samples = f"{shares[last]} sample{'' if shares[last] == 1 else 's'}"
    words = words.format(ranks=len(shares), last=last, odd=f"rank {last} computes {samples}")
    assert (verdict.verdict, verdict.what) == (DIFFERENT, what)
    assert words in verdict.cause
    assert verdict.line.startswith(f"DIFFERENT from update {verdict.update} on: {what}")
    assert verdict.line.endswith(f"; likely: {verdict.cause}")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    for dtype in DTYPES:
        for shares in SHARES:
            if MISTAKES[mistake][0](shares):
                require_named(mistake, shares, dtype)


@settings(max_examples=150)
@given(st.sampled_from(list(MISTAKES)), shares, dtypes)
def test_a_mistake_is_named_whatever_the_shares(mistake, shares, dtype):
    assume(MISTAKES[mistake][0](shares))
    require_named(mistake, shares, dtype)


@pytest.mark.parametrize(
    ("mistake", "shares"),
    [
        (loops.LocalMeansAveraged, (4, 4, 4)),
        (loops.LocalMeansSummed, (12, 0)),
        (loops.LocalMeansNotReduced, (6, 6)),
        (loops.Rank0sAlone, (12, 0)),
    ],
)
def test_where_a_mistake_changes_nothing(mistake, shares):
    """Averaging local means is right for equal shares; so is summing them where one rank has all samples."""
    expected = DIFFERENT if mistake is loops.LocalMeansNotReduced else EQUAL
    assert compared(mistake, shares).verdict == expected


def test_of_two_ranks_one_is_missing():
    """Then the sum is what the other has."""
    assert compared(loops.OneIsMissing, (7, 5)).cause == "all ranks update with the gradient of rank 0 alone"


def test_the_shares_are_told():
    unequal = compared(loops.LocalMeansSummed, (5, 4, 3)).cause
    assert unequal.endswith("(5, 4 and 3 samples): the shares are unequal, so pass total=")
    assert compared(loops.LocalMeansSummed, (6, 6)).cause.endswith("(6 and 6 samples): divide by 2, or pass total=")
    assert "(7 and 5 samples): each has to count" in compared(loops.LocalMeansAveraged, (7, 5)).cause


def test_the_first_difference_is_told():
    """Where gradients are added to those before, the first update is right."""
    verdict = compared(loops.GradientsStay, (6, 6))
    assert (verdict.update, verdict.updates, len(verdict.losses)) == (1, 1, 3)
    assert compared(loops.NoAllReduce, (6, 6)).update == 0


def test_another_global_batch_is_not_compared():
    serial, parallel = loops.Loop([12]), loops.BatchOfEachRank((6, 6))
    verdict = compare_runs(serial.run(), None, parallel.run())
    assert verdict.verdict == ANOTHER_BATCH
    assert verdict.line == "another global batch: 24 samples in an update on 2 ranks, 12 on 1 rank"


def test_a_run_on_two_ranks_is_compared_with_one_on_four():
    reference = loops.Loop((7, 5)).run()
    assert compare_runs(reference, None, loops.Loop((3, 3, 3, 3)).run()).verdict == EQUAL
    verdict = compare_runs(reference, None, loops.SummedTwice((3, 3, 3, 3)).run())
    assert verdict.cause == "4 times the serial gradient: a factor 1/4 is missing"


def test_the_same_run_is_deterministic():
    assert not_deterministic(loops.Loop((7, 5)).run(), loops.Loop((7, 5)).run()) == ""
    told = not_deterministic(loops.Loop((7, 5)).run(), loops.AnotherSeed((7, 5)).run())
    assert told == "two runs on 2 ranks differ from update 0 on (weight): set a seed"


def test_one_rank_that_is_not_deterministic():
    """Its own copy differs; the first rank's does not."""
    assert "differ from update 0 on" in not_deterministic(loops.Loop((7, 5)).run(), loops.RateOfRank1((7, 5)).run())


def test_nothing_was_recorded():
    empty = ScriptRun(1, 0, "", [[]])
    verdict = compare_runs(empty, None, ScriptRun(2, 0, "", [[], []]))
    assert verdict.verdict == NOTHING
    assert "no optimizer of parallel_dl made an update, and nothing was watched" in verdict.line


def test_a_run_that_failed():
    run = loops.Loop((6, 6)).run()
    said = "parallel-dl: rank 1 raised ValueError: no (x.py:3); ended the other ranks"
    failed = dataclasses.replace(run, status=1, output=f"a\n{said}\n")
    verdict = compare_runs(loops.Loop([12]).run(), None, failed)
    expected = "failed: the run on 2 ranks ended with status 1: rank 1 raised ValueError: no (x.py:3)"
    assert (verdict.verdict, verdict.line) == (FAILED, expected)


# -- networks of which each rank holds a part --------------------------------------------------------------------------
class Split(loops.Loop):
    """Each rank holds some rows of the weights, and all compute all samples."""

    replicas = 1

    def samples(self, rank, step):
        whole = self.order()[step * self.batch : (step + 1) * self.batch]
        of_all = len(whole) // self.replicas
        number = rank // (self.size // self.replicas)
        return whole[number * of_all : (number + 1) * of_all]

    def rows(self, rank):
        parts = self.size // self.replicas
        return slice(*[(rank % parts + more) * loops.OUT // parts for more in (0, 1)])

    def summed(self, local):
        parts = self.size // self.replicas
        return [sum(local[rank % parts :: parts]) for rank in range(self.size)]

    def record(self, rank, before, local, used, after):
        update = super().record(rank, before, local, used, after)
        rows = self.rows(rank)
        arrays = {key: array[rows] for key, array in update.arrays.items()}
        piece = ((rows.start, rows.stop),)
        return Update(arrays, {"weight": Part((3, 5), piece), "bias": Part((3,), piece)})


class SplitReplicas(Split):
    replicas = 2


class SplitReplicasNotSummed(SplitReplicas):
    calls = (0, 0)

    def summed(self, local):
        return local


class SplitReplicasOfAll(SplitReplicas):
    """Both replicas compute all samples."""

    def samples(self, rank, step):
        return Split.samples(self, 0, step) if self.size == 1 else self.order()[step * 12 : (step + 1) * 12]


class WrongShard(Split):
    def summed(self, local):
        return [gradient * (1.5 if rank == 1 else 1) for rank, gradient in enumerate(super().summed(local))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "ranks"), [(Split, 2), (Split, 3), (Split, 4), (SplitReplicas, 4), (SplitReplicas, 6)]
)
def test_shards_are_put_together(kind, ranks, dtype):
    serial = loops.Loop([12], dtype).run()
    assert compare_runs(serial, None, on(kind, ranks, dtype)).verdict == EQUAL


def on(kind, ranks, dtype="float64"):
    """A run of a split network on so many ranks, with a batch of 12."""
    loop = kind([1] * ranks, dtype)
    loop.batch = 12
    return loop.run()


@pytest.mark.parametrize(
    ("kind", "ranks", "words"),
    [
        (WrongShard, 3, "only rank 1 has another gradient"),
        (SplitReplicasNotSummed, 4, "own gradient, whose sum is the serial one: no all-reduce before the update"),
        (SplitReplicasOfAll, 4, "every rank computes all samples of the batch"),
    ],
)
def test_mistakes_of_split_networks(kind, ranks, words):
    verdict = compare_runs(loops.Loop([12]).run(), None, on(kind, ranks))
    assert (verdict.verdict, verdict.what) == (DIFFERENT, GRADIENT)
    assert words in verdict.cause


def test_shards_that_leave_values_out():
    run = on(Split, 3)
    run.updates.pop(1)
    verdict = compare_runs(loops.Loop([12]).run(), None, dataclasses.replace(run, ranks=2))
    assert verdict.verdict == DIFFERENT
    assert verdict.cause == "the ranks' shards leave 5 of 15 values out"


# -- what programs give to `watch` -------------------------------------------------------------------------------------
def watched(*arrays, state="replicated", axis=0):
    """A run whose only update has one watched array, of which the ranks have these."""
    updates = []
    for array in arrays:
        part = Part(() if state == "shard" else array.shape, (), state, axis)
        updates.append([Update({"watched/h": array}, {"h": part})])
    return ScriptRun(len(arrays), 0, "", updates)


H = np.arange(12.0).reshape(4, 3)
SERIAL = watched(H)


def test_watched_arrays_are_put_together():
    for run in (
        watched(H, H),
        watched(H - 2, np.full(H.shape, 2.0), state="partial"),
        watched(H[:1], H[1:1], H[1:], state="shard"),
        watched(H[:, :2], H[:, 2:], state="shard", axis=1),
    ):
        assert compare_runs(SERIAL, None, run).verdict == EQUAL


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (watched(H, H + 1), "the ranks' copies are not the same"),
        (watched(H[:1], H[1:], state="shard", axis=1), "along axis 1"),
        (watched(H[:, :2], H[:, 2:], state="shard"), "along axis 0"),
        (watched(H[:2], H[2:3], state="shard"), "shape (3, 3), serially (4, 3): are the shards along another axis?"),
        (watched(H.T, H.T), "its axes are in the order"),
        (watched(H, H, state="partial"), "2 times the serial values"),
        (watched(H / 2, H / 2), "1/2 of the serial values"),
    ],
)
def test_mistakes_in_watched_arrays(run, words):
    verdict = compare_runs(SERIAL, None, run)
    assert (verdict.verdict, verdict.what, verdict.name) == (DIFFERENT, "h", "h")
    assert words in verdict.cause


def test_an_array_that_only_one_side_watches():
    verdict = compare_runs(SERIAL, None, ScriptRun(2, 0, "", [[Update({})], [Update({})]]))
    assert verdict.cause == "there is one only serially"


def test_integers_are_compared_exactly():
    numbers = np.arange(5)
    assert compare_runs(watched(numbers), None, watched(numbers, numbers)).verdict == EQUAL
    assert compare_runs(watched(numbers), None, watched(numbers + 1, numbers + 1)).verdict == DIFFERENT


def test_truth_values_and_bytes():
    for numbers in (H > 5, H.astype("uint8"), np.array(255, "uint8")):
        assert compare_runs(watched(numbers), None, watched(numbers, numbers)).verdict == EQUAL
        assert compare_runs(watched(numbers), None, watched(~numbers, ~numbers)).verdict == DIFFERENT


def test_what_is_not_finite():
    broken = np.where(H == 5, np.nan, H)
    assert compare_runs(SERIAL, None, watched(broken, broken)).verdict == DIFFERENT
    assert compare_runs(watched(broken), None, watched(broken, broken)).verdict == EQUAL
    infinite = np.where(H == 5, np.inf, H)
    assert compare_runs(watched(infinite), None, watched(infinite, infinite)).verdict == EQUAL
    assert compare_runs(watched(infinite), None, watched(broken, broken)).verdict == DIFFERENT


def test_what_is_written_is_read(tmp_path):
    update = loops.Loop((7, 5)).run().updates[1][2]
    update.parts["weight"] = Part((3, 5), ((1, 3), (0, 5)), "replicated")
    write(str(tmp_path), 0, 0, update)
    write(str(tmp_path), 0, 1, Update({}))
    ((found, empty),) = read(tmp_path)
    assert found.arrays.keys() == update.arrays.keys()
    assert all(np.array_equal(found.arrays[key], update.arrays[key]) for key in update.arrays)
    assert dataclasses.replace(found, arrays={}) == dataclasses.replace(update, arrays={})
    assert empty == Update({})

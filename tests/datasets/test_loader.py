"""Whatever the layout: the same order, the same microbatches, every sample once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_dl.datasets import Loader
from parallel_dl.errors import InputError
from parallel_dl.partition import shares

layouts = st.fixed_dictionaries(
    {
        "n": st.integers(1, 40),
        "batch_size": st.integers(1, 45),
        "ranks": st.integers(1, 6),
        "microbatches": st.integers(1, 5),
        "seed": st.integers(0, 2**64 - 1),
        "epoch": st.integers(0, 2**64 - 1),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
    }
)


def samples(n):
    """x (n, 2, 3) and y (n,): sample i holds 6i .. 6i + 5 and its target is i."""
    return np.arange(6 * n, dtype=np.float32).reshape(n, 2, 3), np.arange(n)


@settings(deadline=None, max_examples=150)
@given(layouts)
def test_every_layout_is_a_cut_of_the_serial_batches(case):
    n, batch_size, ranks, m, epoch = (case.pop(k) for k in ("n", "batch_size", "ranks", "microbatches", "epoch"))
    case["drop_last"] &= batch_size <= n
    x, y = samples(n)
    serial = list(Loader(x, y, batch_size, **case).epoch(epoch))
    loaders = [Loader(x, y, batch_size, rank=rank, ranks=ranks, microbatches=m, **case) for rank in range(ranks)]
    parallel = list(zip(*(loader.epoch(epoch) for loader in loaders), strict=True))

    assert len(serial) == len(parallel) == len(loaders[0]) == loaders[0].steps_per_epoch
    sizes = [batch_size] * (n // batch_size) + [n % batch_size] * bool(n % batch_size and not case["drop_last"])
    assert [batch.size for batch in serial] == sizes

    for step, (whole, batches) in enumerate(zip(serial, parallel)):
        assert {batch.step for batch in (whole, *batches)} == {step}
        assert {batch.size for batch in (whole, *batches)} == {whole.size}
        assert whole.first == 0
        np.testing.assert_array_equal(whole.x, x[whole.y])
        position = 0
        for i, microbatch_size in enumerate(shares(whole.size, m)):
            for batch, length in zip(batches, shares(microbatch_size, ranks)):
                assert len(batch.microbatches) == m
                part = batch.microbatches[i]
                assert (part.first, part.size) == (position, whole.size)
                np.testing.assert_array_equal(part.x, whole.x[position : position + length], strict=True)
                np.testing.assert_array_equal(part.y, whole.y[position : position + length], strict=True)
                position += length
        assert position == whole.size

    seen = np.concatenate([batch.y for batch in serial])
    assert len(seen) == sum(sizes)
    assert len(set(seen)) == len(seen)
    if not case["drop_last"]:
        assert set(seen) == set(range(n))
    if not case["shuffle"]:
        np.testing.assert_array_equal(seen, np.arange(len(seen)))


def test_order_depends_on_seed_and_epoch_alone():
    x, y = samples(50)
    first = Loader(x, y, 7, seed=3)
    list(first.epoch(0))
    np.random.seed(1)
    order = first.order(5)
    np.testing.assert_array_equal(Loader(x[:, 0], y * 2.0, 50, seed=3, rank=2, ranks=4).order(5), order)
    for seed, epoch in ((3, 4), (4, 5), (5, 3), (0, 0)):
        assert (Loader(x, y, 7, seed=seed).order(epoch) != order).any()


def test_order_is_this_one_for_ever():
    """A changed order makes old experiments unrepeatable."""
    loader = Loader(*samples(10), 10, seed=1)
    assert [loader.order(epoch).tolist() for epoch in (0, 1)] == [
        [0, 4, 1, 2, 3, 5, 9, 6, 7, 8],
        [0, 5, 3, 7, 1, 8, 4, 9, 6, 2],
    ]


def test_order_is_uniform():
    loader = Loader(*samples(4), 4, seed=0)
    counts = np.zeros((4, 4))
    for epoch in range(2000):
        counts[np.arange(4), loader.order(epoch)] += 1
    assert (abs(counts - 500) < 100).all()  # five standard deviations of 19.4


def test_interleaved_epochs_do_not_disturb_each_other():
    loader = Loader(*samples(20), 3, seed=9)
    expected = [[batch.y.tolist() for batch in loader.epoch(e)] for e in (0, 1)]
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert [[pair[e].y.tolist() for pair in pairs] for e in (0, 1)] == expected


@pytest.mark.parametrize("start", [0, 1, 6, 7])
def test_start_in_the_middle_of_an_epoch(start):
    loader = Loader(*samples(20), 3)
    rest = [(batch.step, batch.y.tolist()) for batch in loader.epoch(2, start=start)]
    assert rest == [(batch.step, batch.y.tolist()) for batch in loader.epoch(2)][start:]


def test_shares_are_copies_and_empty_ones_keep_their_shape():
    x, y = samples(5)
    kept = x.copy()
    for rank in range(4):
        for batch in Loader(x, y.astype(np.int64), 3, rank=rank, ranks=4, shuffle=False).epoch(0):
            assert batch.x.shape[1:] == (2, 3)
            assert (batch.x.dtype, batch.y.dtype) == (np.float32, np.int64)
            assert len(batch.x) == (rank < batch.size)
            batch.x[...] = -1
    np.testing.assert_array_equal(x, kept)


def test_a_rank_touches_only_its_own_samples():
    class Recorder(np.ndarray):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    asked = []
    x, y = samples(20)
    loader = Loader(x, y, 20, rank=1, ranks=3, microbatches=2)
    loader.x = x.view(Recorder)
    (batch,) = loader.epoch(0)
    assert [len(index) for index in asked] == [3, 3]  # one index per share: 10 = 4 + 3 + 3
    np.testing.assert_array_equal(np.concatenate(asked), np.concatenate([part.y for part in batch.microbatches]))


def test_targets_of_any_shape():
    x = np.arange(6.0).reshape(6, 1)
    (batch,) = Loader(x, x[:, :, None] * [1, 2], 6).epoch(0)
    np.testing.assert_array_equal(batch.y, batch.x[:, :, None] * [1, 2])


@pytest.mark.parametrize("name", ["x", "y", "first"])
def test_several_microbatches_have_no_single_share(name):
    batch = next(Loader(*samples(5), 4, microbatches=2).epoch(0))
    with pytest.raises(ValueError, match="2 microbatches"):
        getattr(batch, name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size 0: expected a whole number, at least 1"),
        ({"batch_size": -3}, "batch_size -3"),
        ({"batch_size": 2.5}, "batch_size 2.5"),
        ({"ranks": 0}, "ranks 0"),
        ({"rank": -1, "ranks": 2}, "rank -1: expected 0 to 1"),
        ({"rank": 2, "ranks": 2}, "rank 2: expected 0 to 1"),
        ({"microbatches": 0}, "microbatches 0"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seed 18446744073709551616"),
        ({"drop_last": True, "batch_size": 6}, "batch_size 6 with drop_last: expected 1 to 5"),
        ({"y": np.zeros(4)}, r"x of shape \(5, 2, 3\) and y of shape \(4,\)"),
        ({"y": np.float64(1)}, r"y of shape \(\)"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "at least one sample"),
    ],
)
def test_bad_arguments(arguments, words):
    x, y = samples(5)
    with pytest.raises(InputError, match=words) as caught:
        Loader(**{"x": x, "y": y, "batch_size": 2, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [(-1,), (0.5,), (2**64,), (0, -1), (0, 4)])
def test_bad_epoch_is_said_at_once(arguments):
    with pytest.raises(InputError, match="expected"):
        Loader(*samples(5), 2).epoch(*arguments)

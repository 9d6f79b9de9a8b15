"""What two arrays that differ have in common: each pattern is found where it is, and nowhere else."""

import numpy as np
import pytest

from parallel_dl.equivalence.compare import patterns

A = np.random.default_rng(3).standard_normal((7, 4, 5))
B = np.random.default_rng(4).standard_normal((7, 4, 5))


@pytest.mark.parametrize("by", [2.0, -1.0, 0.0, 1 / 3, 1e-200])
def test_a_factor_that_all_values_have(by):
    assert patterns.factor(A, by * A) == pytest.approx(by)
    assert patterns.factor(A, by * A + 1e-3 * B) is None


@pytest.mark.parametrize(
    ("a", "b"), [(0 * A, A), (A, B), (A, A[:6]), (A[:0], A[:0]), (A, np.where(B > 2, np.inf, A)), (A * np.nan, A)]
)
def test_no_factor(a, b):
    assert patterns.factor(a, b) is None


@pytest.mark.parametrize(("number", "whole"), [(2.0, 2), (-3 + 1e-7, -3), (2.001, None), (0.0, None), (np.inf, None)])
def test_whole_numbers(number, whole):
    assert patterns.whole(number) == whole


def test_slices_of_unequal_length_in_another_order():
    """As shards are: 7 rows of 3 ranks are 3, 2 and 2."""
    other = np.concatenate([A[5:], A[:3], A[3:5]])
    assert patterns.order_of_slices(A, other, (3,)) == (0, [2, 0, 1])
    assert patterns.order_of_slices(A, other, (2,)) is None
    assert patterns.order_of_slices(A, other, (3,), axes=(1, 2)) is None
    assert patterns.order_of_slices(A, A + 1e-8, (3,)) is None, "nothing is out of place"
    assert patterns.order_of_slices(A, B, range(2, 9)) is None


def test_slices_that_have_the_same_sums_are_told_apart():
    same = np.stack([A[0], -A[0], A[1], -A[1]])
    assert patterns.order_of_slices(same, same[[1, 0, 3, 2]], (4,)) == (0, [1, 0, 3, 2])


def test_exchanged_axes():
    assert patterns.exchanged_axes(A, A.transpose(2, 0, 1)) == (2, 0, 1)
    assert patterns.exchanged_axes(np.eye(3), np.eye(3)) is None
    assert patterns.exchanged_axes(A, B) is None


@pytest.mark.parametrize(("by", "found"), [(1, 1), (-2, 2), (3, None)])
def test_a_shift(by, found):
    assert patterns.shift(A, np.roll(A, by, axis=0), 0, 2) == found


def test_summands():
    summands = [A, B, A * B]
    assert patterns.add_up(summands, A + B + A * B)
    assert not patterns.add_up([A], A), "one is no sum"
    assert patterns.missing(summands, A + A * B) == [1]
    assert patterns.missing(summands, A + B + A * B) is None
    assert patterns.missing(summands, 2 * A) is None
    assert patterns.counts(summands, 2 * A - B) == [2, -1, 0]
    assert patterns.counts(summands, 0.5 * A) is None


def test_infinities_are_no_reason():
    array = np.array([1.0, -np.inf, 2.0])
    with np.errstate(all="raise"):
        assert not patterns.close(array, array + 1)

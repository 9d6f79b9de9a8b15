"""Leaves and their tree: the sum of the ranks' subtrees is the tree of all, to the last bit and the sign of zero."""

import numpy as np
import pytest

from parallel_dl.partition import LEAVES, share, shares
from parallel_dl.reproducible import Leaves, TreeSum, sum_of_leaves
from parallel_dl.reproducible.leaves import runs, sum_of_rows

LENGTHS = (0, 1, 3, 5, 8, 11, 16, 29)


def same_bits(a, b):
    assert a.dtype == b.dtype
    assert a.tobytes() == b.tobytes()


def values(*shape, seed=0):
    """Numbers of very different sizes, and zeros of either sign: another order of summation gives other bits."""
    random = np.random.default_rng(seed)
    array = random.standard_normal(shape) * 10.0 ** random.integers(-8, 8, shape)
    array[random.random(shape) < 0.2] = -0.0
    return array.astype(np.float32)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_shares_are_unions_of_leaves(length, ranks):
    ends = [share(length, LEAVES, leaf).stop for leaf in range(LEAVES)]
    own = [share(length, ranks, rank, LEAVES) for rank in range(ranks)]
    assert [part.stop for part in own] == ends[LEAVES // ranks - 1 :: LEAVES // ranks]
    assert shares(length, ranks, LEAVES) == [part.stop - part.start for part in own]
    assert list(Leaves.even(length).of_ranks(ranks)) == shares(length, ranks, LEAVES)
    # the leaves of a share are those of its length: nobody has to be told the whole
    for part in own:
        cuts = shares(part.stop - part.start, LEAVES // ranks)
        assert {part.start + sum(cuts[:number]) for number in range(len(cuts) + 1)} <= {0, *ends}


def test_shares_refuse_ranks_that_do_not_divide_the_leaves():
    with pytest.raises(ValueError, match="8 leaves do not go evenly to 3 owners"):
        share(10, 3, 0, 8)


def by_definition(parts):
    """The tree written down: a leaf that is empty is a zero."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return by_definition(parts[:half]) + by_definition(parts[half:])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_subtrees_of_ranks_add_up_to_the_tree(length, ranks):
    leaves, seed = Leaves.even(length), length
    summands = values(LEAVES, 400, seed=seed)
    summands[[size == 0 for size in leaves.sizes]] = 0.0
    of_ranks = []
    for rank in range(ranks):
        part = share(length, ranks, rank, LEAVES)
        own = leaves.within(part)
        here = range(rank * LEAVES // ranks, (rank + 1) * LEAVES // ranks)
        stack = summands[[number for number in here if leaves.sizes[number]]]
        of_ranks.append(own.add_up(stack))
    same_bits(by_definition(of_ranks), by_definition(list(summands)))


def test_leaves_in_the_middle_keep_their_places_in_the_tree():
    summands = values(LEAVES, 300)
    for first in range(LEAVES):
        for last in range(first, LEAVES):
            rest = summands.copy()
            rest[:first] = rest[last + 1 :] = 0
            stack = summands[first : last + 1]
            same_bits(sum_of_leaves(stack, first) + np.float32(0), by_definition(list(rest)) + np.float32(0))


def test_the_tree_is_no_other_order():
    summands = values(LEAVES, 300)
    in_order = summands[0]
    for summand in summands[1:]:
        in_order = in_order + summand
    assert sum_of_leaves(summands).tobytes() != in_order.tobytes()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cut_and_join(length, axis):
    shape = [3, 2, 4]
    shape[axis] = length
    array, leaves = values(*shape), Leaves.even(length)
    own = leaves.within()
    stack = own.cut(array, axis)
    assert stack.flags.c_contiguous
    assert stack.shape[0] == min(length, LEAVES)
    same_bits(own.join(stack, axis), array)
    for leaf, part in zip(stack, own.slices):
        filled = np.moveaxis(leaf, axis, 0)
        same_bits(np.ascontiguousarray(filled[: part.stop - part.start]), np.moveaxis(array, axis, 0)[part].copy())
        assert not filled[part.stop - part.start :].any()


def test_a_part_that_cuts_a_leaf_is_refused():
    with pytest.raises(ValueError, match=r"1 to 4 is no union of leaves of sizes \(2, 2, 2"):
        Leaves.even(16).within(slice(1, 4))


def test_inside_and_times():
    assert Leaves((2, 2, 1, 1)).times(3).sizes == (6, 6, 3, 3)
    inside = Leaves((2, 2, 1, 1)).within(slice(2, 5), whole=slice(1, 5))
    assert (inside.sizes, inside.first, inside.block, inside.start, inside.length) == ((2, 1), 1, 2, 1, 4)


@pytest.mark.parametrize("samples", [0, 1, 5, 8, 19])
@pytest.mark.parametrize("most", [None, 1, 3])
def test_runs_of_leaves_of_one_size(samples, most):
    array, seen = values(samples, 2), {}
    for run in runs(samples, LEAVES, most):
        assert run.count <= (most or LEAVES)
        for number, leaf in zip(range(run.leaves.start, run.leaves.stop), run.of(array)):
            seen[number] = leaf
    for number in range(LEAVES):
        expected = array[share(samples, LEAVES, number)]
        same_bits(seen.get(number, array[:0]), expected)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_sums_that_come_leaf_by_leaf(count):
    summands = values(count, 2, 300)
    running = TreeSum()
    for summand in summands:
        running.add([summand[0].copy(), summand[1].copy()])
    for index, total in enumerate(running.total()):
        same_bits(total, by_definition(list(summands[:, index])))


def test_three_leaves_are_no_tree():
    running = TreeSum()
    for _ in range(3):
        running.add([np.zeros(2)])
    with pytest.raises(ValueError, match="power of two"):
        running.total()


@pytest.mark.parametrize("length", LENGTHS)
def test_sums_of_rows_do_not_depend_on_the_other_axis(length):
    """NumPy's sum does: over rows of one column it adds up in another order."""
    array = values(length, 37)
    whole = sum_of_rows(array)
    for width in (1, 2, 5):
        for start in range(0, 37, width):
            same_bits(sum_of_rows(array[:, start : start + width]), whole[start : start + width])

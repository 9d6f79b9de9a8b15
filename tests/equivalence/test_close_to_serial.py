"""A forward value that is wrong says what the matter is."""

import numpy as np
import pytest

from parallel_dl.equivalence import assert_close_to_serial
from parallel_dl.errors import InputError
from parallel_dl.mesh import Partial, Replicated, Shard
from parallel_dl.partition import share

pytestmark = pytest.mark.ranks(2, 3, 4)

RNG = np.random.default_rng(5)
X, W, BIAS = RNG.standard_normal((6, 7)), RNG.standard_normal((7, 5)), RNG.standard_normal(5)
SERIAL = X @ W + BIAS


def part(comm, length):
    return share(length, comm.size, comm.rank)


def summand(comm):
    inner = part(comm, 7)
    return X[:, inner] @ W[inner]


def fault(value, comm, placement=None, expected=SERIAL):
    with pytest.raises(AssertionError) as caught:
        assert_close_to_serial(value, expected, comm, placement)
    return str(caught.value)


def test_right_values(comm):
    assert_close_to_serial(SERIAL, SERIAL, comm)
    assert_close_to_serial(SERIAL.astype(np.float32), SERIAL, comm)
    assert_close_to_serial(comm.all_reduce(summand(comm)) + BIAS, SERIAL, comm)
    assert_close_to_serial(summand(comm), X @ W, comm, Partial())
    assert_close_to_serial(SERIAL[part(comm, 6)], SERIAL, comm, Shard(0))
    assert_close_to_serial(SERIAL[:, part(comm, 5)], SERIAL, comm, Shard(1))


def test_a_sum_or_a_gather_that_is_missing(comm):
    assert fault(summand(comm), comm, expected=X @ W).endswith("each rank has a summand: an all_reduce is missing")
    assert "each rank has a slice along axis 1: an all_gather is missing" in fault(SERIAL[:, part(comm, 5)], comm)
    assert "each rank has a slice along axis 0: an all_gather is missing" in fault(SERIAL[part(comm, 6)], comm)


def test_a_bias_on_each_rank(comm):
    said = fault(comm.all_reduce(summand(comm) + BIAS), comm)
    assert f"likely a bias that is added on each of the {comm.size} ranks instead of once, or left out" in said


def test_factors(comm):
    assert f"{comm.size} times too large" in fault(comm.all_reduce(SERIAL), comm)
    assert f"1/{comm.size} of it" in fault(SERIAL / comm.size, comm)
    assert "a wrong sign" in fault(-SERIAL, comm)
    assert "a factor 1.5" in fault(1.5 * SERIAL, comm, Replicated())


def test_shards_in_another_order(comm):
    """Rank r holds the slice of rank P - 1 - r; slices of one length, that a sum of them cannot hide."""
    whole = RNG.standard_normal((3, 4 * comm.size))
    own = whole[:, 4 * (comm.size - 1 - comm.rank) :][:, :4]
    said = fault(own, comm, Shard(1), whole)
    order = ", ".join(map(str, reversed(range(comm.size))))
    assert said.endswith(f"its slices along axis 1 are in another order: {order}")


def test_exchanged_axes(comm):
    assert "its axes are exchanged" in fault(np.ascontiguousarray(SERIAL.T), comm)


def test_one_rank_alone(comm):
    value = SERIAL + (RNG.standard_normal(SERIAL.shape) if comm.rank == 1 else 0)
    said = fault(value, comm)
    assert said.startswith("off on rank 1 by ")
    right = {2: "rank 0 has", 3: "ranks 0 and 2 have", 4: "ranks 0, 2 and 3 have"}[comm.size]
    assert said.endswith(f"likely only rank 1: {right} the serial value")


def test_another_axis(comm):
    """Of equal slices, and of slices that do not fit along the axis that is given."""
    for length in (2 * comm.size, 2 * comm.size + 1):
        whole = np.random.default_rng(6).standard_normal((6, length))
        said = fault(whole[:, part(comm, length)], comm, Shard(0), whole)
        assert said.endswith("likely the ranks' slices are along axis 1, not along axis 0")


def test_what_does_not_fit_together(comm):
    said = fault(SERIAL[: comm.rank + 1], comm, Shard(1))
    assert said.startswith("the ranks' values do not fit together (")
    with pytest.raises(InputError, match=r"placement 1: expected Replicated\(\), Partial\(\) or Shard\(axis\)"):
        assert_close_to_serial(SERIAL, SERIAL, comm, 1)

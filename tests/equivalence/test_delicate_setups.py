"""Setups that are right and hard to compare are called equal, and a bug in each of them is still caught."""

import pytest
from delicate_setups import SETUPS

from parallel_dl.data_parallel.gradients import GradientAllReduce
from parallel_dl.equivalence import verify
from parallel_dl.layout import Layout

SAMPLE = (
    "convolution_then_batch_norm_under_adam",
    "the_same_with_a_tiny_eps",
    "batch_norm_of_nearly_constant_input",
    "batch_norm_of_a_large_mean",
    "batch_norm_of_samples_that_are_all_the_same",
    "saturated_softmax",
    "a_generator_of_the_layers_own",
    "buffers_that_are_not_finite",
    "a_counter_that_nobody_reads",
    "a_rule_that_counts_its_calls",
    "chaos_with_momentum",
)


def cells(comm, name):
    make, layouts = SETUPS[name]
    found = verify(comm, {name: make()}, [(name, layout) for layout in layouts[comm.size]])
    return [cell for cell in found if cell is not None]


def check(comm, name):
    for cell in cells(comm, name):
        assert cell.equal, (cell.layout, cell.worst, cell.divergence, cell.note)


@pytest.mark.sampled(2)
@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", SAMPLE)
def test_some_setups_are_equal(comm, name):
    check(comm, name)


@pytest.mark.grid
@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("name", SETUPS)
def test_every_setup_is_equal(comm, name):
    check(comm, name)


def test_there_are_enough_of_them():
    assert len(SETUPS) >= 40
    assert set(SAMPLE) < set(SETUPS)


def wrong_on_one_rank(before):
    """An all-reduce before which the gradients of the first rank are a hundredth too large."""

    def all_reduce(reduction):
        one = reduction.comm.size > 1 and reduction.comm.rank == 0
        for parameter in reduction.parameters if one else ():
            if parameter.grad is not None:
                parameter.grad *= 1.01
        before(reduction)

    return all_reduce


def check_that_a_bug_is_caught(comm, monkeypatch, name):
    make, _ = SETUPS[name]
    layout = Layout(dp=comm.size)
    (right,) = verify(comm, {name: make()}, [(name, layout)])
    assert right is None or right.equal
    monkeypatch.setattr(GradientAllReduce, "all_reduce", wrong_on_one_rank(GradientAllReduce.all_reduce))
    (wrong,) = verify(comm, {name: make()}, [(name, layout)])
    assert wrong is None or not wrong.equal


@pytest.mark.sampled(2)
@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", ["the_same_with_a_tiny_eps", "saturated_softmax", "chaos_with_momentum"])
def test_a_bug_in_some_setups_is_caught(comm, monkeypatch, name):
    check_that_a_bug_is_caught(comm, monkeypatch, name)


@pytest.mark.grid
@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", SETUPS)
def test_a_bug_in_every_setup_is_caught(comm, monkeypatch, name):
    check_that_a_bug_is_caught(comm, monkeypatch, name)

"""Random layouts of random networks equal the serial run; what does not is shrunk, and printed to be run again."""

from contextlib import ExitStack

import numpy as np
import pytest
from drawn import Drawn, check, explore

from parallel_dl.equivalence.mutants import replaced
from parallel_dl.pipeline_parallel.messages import Messages

KEPT = [  # on two ranks
    Drawn((3,), (("linear", 4), ("tanh",)), {"pp": 2, "microbatches": 3, "schedule": "pipedream"}),
    Drawn((2, 4, 3), (("conv", 4, 3, 1, 1, 1, 1, True), ("batch", True)), {"mp": 2, "split": {"0": "rows"}}),
]


@pytest.mark.ranks(2)
def test_examples_that_are_kept(comm):
    """What was once found, or could be: an example as it is printed."""
    assert [check(comm, drawn) for drawn in KEPT] == [(None, None)] * len(KEPT)


@pytest.mark.ranks(2)
def test_a_gradient_that_is_zero_in_theory(comm):
    """A layer norm takes away what the bias before it has added: its gradient, of any sample, is rounding."""
    layers = ("batch", True), ("layer norm",)
    drawn = Drawn((1, 1, 4), layers, {"mp": 2}, batch_size=1, seed=1)
    assert check(comm, drawn) == (None, "ill-conditioned")


@pytest.mark.ranks(2)
def test_a_few_layouts(comm):
    """`make grid` has 200 for each number of ranks, and `make soak` thousands."""
    assert explore(comm, 4, seed=0) > 0


@pytest.mark.grid
@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("seed", [1, 2])
def test_many_layouts(comm, seed):
    assert explore(comm, 100, seed) > 60


@pytest.mark.soak
@pytest.mark.ranks(2, 3, 4, 6, 8, timeout=3600)
@pytest.mark.parametrize("seed", range(10, 20))
def test_very_many_layouts(comm, seed):
    assert explore(comm, 400, seed) > 200


@pytest.mark.grid
@pytest.mark.ranks(2)
def test_a_planted_bug_is_found_and_shrunk(comm):
    """To two layers with weights, which is as few as two stages can have, and one microbatch."""

    def make(before):
        return lambda runner, action, array: before(runner, action, -array if action.kind == "SB" else array)

    with ExitStack() as stack:
        replaced(stack, Messages, "send", make)
        if comm.rank:
            explore(comm, 60, 0)
            return
        with pytest.raises(AssertionError) as found:
            explore(comm, 60, 0)
    said = str(found.value)
    assert said.startswith("check(comm, Drawn(shape=(1,")
    drawn = eval(said.removeprefix("check(comm, ").split(") on 2 ranks")[0], {"Drawn": Drawn, "np": np})
    assert len(drawn.layers) <= 2
    assert (drawn.layout["pp"], drawn.layout["microbatches"]) == (2, 1)
    assert "wrong sign" in said

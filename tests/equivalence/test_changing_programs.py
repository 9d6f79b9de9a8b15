"""Programs that change their state under way: equal to the serial run, and a change that is not followed is seen."""

import dataclasses
from contextlib import ExitStack

import pytest

from parallel_dl.data_parallel.buckets import Bucket
from parallel_dl.data_parallel.changes import Watch
from parallel_dl.equivalence import layouts_of, record, synthetic_experiment, verify
from parallel_dl.equivalence.mutants import replaced
from parallel_dl.equivalence.specimens.networks import SPECIMENS, network_named
from parallel_dl.equivalence.specimens.programs import PROGRAMS
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import ModelParallel
from parallel_dl.pipeline_parallel import PipelineParallel

SHAPE = (2, 3, 4)
REPLICAS = Layout(dp=2, microbatches=2)
SPLIT = Layout(mp=2, split={"fc1": "output", "fc2": "input"})
PIPE = Layout(pp=2, microbatches=2)
STASHING = Layout(pp=2, microbatches=3, schedule="pipedream")


def build():
    return network_named("changing", SHAPE, 4)


def experiment(steps=5):
    return PROGRAMS["changing"].of(synthetic_experiment(build, SHAPE, 4, 8, steps))


def cells(comm, *layouts, steps=5):
    """(equal, quantity that is worst) of each layout, on every rank."""
    found = verify(comm, {"changing": experiment(steps=steps)}, [("changing", layout) for layout in layouts])
    return comm.broadcast_object([cell and (cell.equal, cell.worst["quantity"]) for cell in found])


def test_each_goes_with_a_specimen():
    assert PROGRAMS.keys() <= SPECIMENS.keys()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("layouts", [(REPLICAS, SPLIT), (PIPE, STASHING)])
def test_equal(comm, layouts):
    """The second of each pair is in checked mode."""
    assert [equal for equal, _ in cells(comm, *layouts)] == [True, True]


@pytest.mark.grid
@pytest.mark.ranks(2, 3, 4)
def test_equal_under_every_layout(comm):
    layouts = layouts_of(comm.size, build(), SHAPE)
    wrong = [layout for layout, (equal, _) in zip(layouts, cells(comm, *layouts), strict=True) if not equal]
    assert not wrong


@pytest.mark.ranks(2)
def test_the_serial_run_is_changed_too(comm):
    """It would be another one without the changes: the proof does not compare two runs that change nothing."""

    changed, plain = (record(one) for one in (experiment(), dataclasses.replace(experiment(), changes=None)))
    assert "fc1.weight" not in changed.gradients[0]
    assert "fc1.weight" in changed.gradients[1]
    assert "fc3.weight" not in changed.gradients[2]
    assert changed.losses[:2] == plain.losses[:2]
    assert len(set(changed.losses[2:]) & set(plain.losses[2:])) == 0


def never(before):
    return lambda *_: []


def unchanged(before):
    return lambda bucket: False


def of_one_rank(before):
    """The last rank keeps what it has."""
    return lambda parallel, state: None if parallel.comm.rank else before(parallel, state)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("layout", "steps", "owner", "name", "change"),
    [
        (REPLICAS, 2, Watch, "_opened", never),  # later the loading of weights would notice it
        (REPLICAS, 2, Bucket, "was_changed", unchanged),
        (SPLIT, 4, ModelParallel, "load_state_dict", of_one_rank),
        (PIPE, 4, PipelineParallel, "load_state_dict", of_one_rank),
    ],
)
def test_a_change_that_is_not_followed_is_seen(comm, layout, steps, owner, name, change):
    with ExitStack() as stack:
        replaced(stack, owner, name, change)
        ((equal, quantity),) = cells(comm, layout, steps=steps)
    assert not equal
    assert "load_state_dict" not in quantity, "read back only in the end"

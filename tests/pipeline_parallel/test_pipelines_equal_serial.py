"""Pipelines compute what a serial run with the same microbatches computes, to the last bit where only they are used."""

import numpy as np
import pytest

from parallel_dl import networks, nn, optim
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh

SYNCHRONOUS = ("naive", "gpipe", "1f1b", "interleaved", "zb-h1")
SAMPLE = {
    1: ("gpipe", "1f1b"),
    2: ("naive", "zb-h1"),
    3: ("1f1b", "interleaved"),
    8: ("interleaved", "zb-h1"),
    16: ("gpipe", "interleaved"),
}


def deep():
    """Sixteen stages can be made of it; dropout on."""
    return networks.MLP((1, 8, 8), 5, hidden=(7,) * 16, dropout=0.2)


def images():
    """Everything whose sums depend on the order of memory: normalisation, a skip connection, pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Branches(nn.Identity(), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.LocalResponseNorm(3),
        nn.GlobalAvgPool2d(),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.LayerNorm(5),
    )


def towers():
    """Branches that ranks have whole, one of them with a branch less; they meet after a boundary of stages."""
    tower = lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())  # noqa: E731
    return nn.Sequential(
        conv=nn.Conv2d(1, 2, 3, padding=1),
        branches=nn.Branches(tower(), tower(), join="concatenate"),
        flatten=nn.Flatten(),
        fc=nn.Linear(6 * 6 * 6, 5),
    )


def one_dropout():
    """In stages of their own, and inside of a layer: every place has its mask, whichever stages a rank has."""
    drop = nn.Dropout(0.4)
    block = nn.Sequential(nn.Tanh(), drop)
    layers = [nn.Flatten(), nn.Linear(64, 9), drop, block, nn.Linear(9, 8), block, nn.Linear(8, 8), drop]
    return nn.Sequential(*layers, nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 5))


SPLIT = [
    (deep, None),
    (deep, {"classifier": "input"}),
    (images, {"features": "rows"}),
    (images, {"0": "filters", "5": "filters", "9": "output"}),
    (towers, {"branches": "towers", "fc": "output"}),
]


def experiment(build, batch_size=19, steps=5, make=lambda p: optim.SGD(p, 0.05, momentum=0.9)):
    random = np.random.default_rng(3)
    x, y = random.random((40, 1, 8, 8)), random.integers(0, 5, 40)
    return Experiment(build, x, y, make, batch_size, steps, seed=1)


def check(comm, what, schedules, microbatches, dp=1, mp=1, split=None):
    """Every schedule that takes so many microbatches; the serial run is made, and compared, by rank 0."""
    pp, errors = comm.size // dp // mp, []
    only_a_pipeline = dp == mp == 1
    for m in microbatches:
        serial = None
        if comm.rank == 0:  # with magnitudes only where they are needed
            serial = record(what, Layout(microbatches=m), Mesh.serial() if only_a_pipeline else None)
        for schedule in schedules:
            if schedule == "interleaved" and m % pp:
                continue
            layout = Layout(dp=dp, mp=mp, pp=pp, microbatches=m, schedule=schedule, split=split)
            parallel = record(what, layout, Mesh(comm, data=dp, pipe=pp, model=mp))
            if comm.rank == 0:
                try:
                    (require_same_bits if only_a_pipeline else assert_same)(serial, parallel)
                except AssertionError as error:
                    errors.append(f"{layout}: {error}")
    found = comm.broadcast_object(errors)
    assert not found, "\n".join(found)


def require_same_bits(serial, parallel):
    assert parallel.replicas_equal
    assert parallel.losses == serial.losses
    for kind in ("gradients", "state", "weights"):
        for step, (ours, theirs) in enumerate(zip(getattr(serial, kind), getattr(parallel, kind), strict=True)):
            assert ours.keys() == theirs.keys()
            for name, array in ours.items():
                assert np.array_equal(array, theirs[name]), (kind, step, name)


@pytest.mark.ranks(1, 2)
def test_every_schedule(comm):
    """19 samples: microbatches of different sizes, with 16 of a sample or two."""
    check(comm, experiment(deep), SYNCHRONOUS, (1, 2, 3, 8, 16))


@pytest.mark.ranks(2)
def test_one_dropout_in_several_stages(comm):
    check(comm, experiment(one_dropout, steps=2), ("1f1b", "interleaved", "zb-h1"), (2,))


@pytest.mark.ranks(4)
def test_one_dropout_in_several_stages_of_split_layers(comm):
    check(comm, experiment(one_dropout, steps=2), ["1f1b"], (2,), mp=2, split={"1": "output", "8": "input"})


@pytest.mark.sampled(2)
@pytest.mark.ranks(3, 4, 8)
@pytest.mark.parametrize(("m", "schedules"), SAMPLE.items())
def test_more_stages(comm, m, schedules):
    """A sample: `make grid` has them all."""
    check(comm, experiment(deep, steps=2), schedules, [m])


@pytest.mark.ranks(2, 4)
def test_images(comm):
    """After a convolution memory has another order, which travels along."""
    check(comm, experiment(images, steps=3), ("1f1b", "zb-h1"), (3,))
    if comm.size == 2:
        check(comm, experiment(images, steps=3), ["interleaved"], (4,))


@pytest.mark.sampled(2)
@pytest.mark.ranks(2, 8)
def test_every_schedule_with_data_parallelism(comm):
    """Two replicas of 1 and 4 stages; of 2 below, and of 3 in the grid."""
    for m, schedules in SAMPLE.items():
        check(comm, experiment(deep, steps=2 if comm.size == 2 else 1), schedules, [m], dp=2)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("build", [deep, images])
def test_with_data_parallelism(comm, build):
    """Two replicas; with 3 samples in 4 microbatches some shares are empty."""
    check(comm, experiment(build, 9, steps=3), ("gpipe", "zb-h1"), (3,), dp=2)
    if build is images:  # the order of backward passes is not that of the forwards
        check(comm, experiment(build, 9, steps=2), ["interleaved"], (4,), dp=2)
    if build is deep:
        check(comm, experiment(build, batch_size=3, steps=2), ["1f1b"], (4,), dp=2)


@pytest.mark.sampled(2)
@pytest.mark.ranks(4, 8)
@pytest.mark.parametrize(("build", "split"), SPLIT)
def test_with_split_layers(comm, build, split):
    """2 stages x 2 or 4 ranks that share them; some ranks' shares are empty. `make grid` has 3 ranks, and replicas."""
    check(comm, experiment(build, 9, steps=2), ["1f1b", "zb-h1"], (3,), 1, comm.size // 2, split)


@pytest.mark.ranks(3)
def test_a_rank_without_weights_in_a_stage(comm):
    """Two towers on three ranks give the scores: in backward the third one takes part, with nothing of its own."""
    random = np.random.default_rng(3)
    build = lambda: nn.Sequential(towers=nn.Branches(nn.Linear(6, 2), nn.Linear(6, 3), join="concatenate"))  # noqa: E731
    sgd = lambda parameters: optim.SGD(parameters, 0.05)  # noqa: E731
    what = Experiment(build, random.random((20, 6)), random.integers(0, 5, 20), sgd, 7, 3, seed=1)
    check(comm, what, ["1f1b"], (2,), mp=3, split={"towers": "towers"})


@pytest.mark.ranks(2)
def test_adam(comm):
    check(comm, experiment(deep, make=lambda p: optim.Adam(p, 1e-2)), ["1f1b", "zb-h1"], (3,))


@pytest.mark.grid
@pytest.mark.ranks(1, 2, 3, 4, 5, 6, 7, 8)
@pytest.mark.parametrize("schedule", SYNCHRONOUS)
def test_grid(comm, schedule):
    check(comm, experiment(deep), [schedule], (1, 2, 3, 4, 5, 6, 7, 8, 13, 16))


@pytest.mark.grid
@pytest.mark.ranks(6, 8)
@pytest.mark.parametrize(("build", "split"), SPLIT)
def test_grid_with_split_layers(comm, build, split):
    """2 stages of 3 ranks, or two replicas of 2 stages of 2 ranks."""
    dp, mp = {6: (1, 3), 8: (2, 2)}[comm.size]
    check(comm, experiment(build, 9), ["1f1b", "zb-h1"], (3,), dp, mp, split)


@pytest.mark.grid
@pytest.mark.ranks(2, 4, 6, 8)
@pytest.mark.parametrize("schedule", SYNCHRONOUS)
def test_grid_with_data_parallelism(comm, schedule):
    check(comm, experiment(deep), [schedule], (1, 2, 3, 8, 16), dp=2)

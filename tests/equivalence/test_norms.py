"""Norms under every layout: clipping and LARS are the serial run, because every value is counted once."""

import functools

import numpy as np
import pytest

from parallel_dl import networks, nn, optim
from parallel_dl.equivalence import Experiment, compare, record
from parallel_dl.equivalence.runs.record import batches, start
from parallel_dl.errors import InputError
from parallel_dl.global_norms import GlobalNorms
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh


def deep():
    """Stages can be made of it."""
    return networks.MLP((1, 8, 8), 5, hidden=(7,) * 4)


def tied():
    """One weight in two layers, split once along its outputs; normalisations and biases are on all ranks."""
    first, second = nn.Linear(9, 9), nn.Linear(9, 9, bias=False)
    second.weight = first.weight
    layers = {"norm": nn.LayerNorm(9), "a": first, "relu": nn.ReLU(), "b": second, "fc": nn.Linear(9, 5)}
    return nn.Sequential(flatten=nn.Flatten(), enter=nn.Linear(64, 9), **layers)


def images():
    """Kernels that all ranks have, kernels in pieces, and a matrix in pieces along its inputs."""
    return nn.Sequential(
        conv1=nn.Conv2d(1, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 6, 3),
        flatten=nn.Flatten(),
        fc=nn.Linear(6 * 6 * 6, 5),
    )


def towers():
    """A tower on each of two ranks; further ranks have none of their weights."""
    tower = lambda: nn.Sequential(nn.Linear(64, 3), nn.ReLU())  # noqa: E731
    branches = nn.Branches(tower(), tower(), join="concatenate")
    return nn.Sequential(flatten=nn.Flatten(), branches=branches, fc=nn.Linear(6, 5))


def sgd(parameters):
    return optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3)


def adam(parameters):
    return optim.Adam(parameters, 1e-2)


def lars(parameters):
    return optim.LARS(parameters, 5, weight_decay=1e-3)


TIED = {"a": "output", "b": "output"}
IMAGES = {"conv1": "rows", "conv2": "filters", "fc": "input"}
# ranks -> what is computed, and how
LAYOUTS = {
    1: [(deep, Layout(microbatches=2, schedule="1f1b")), (tied, Layout(split=TIED))],
    2: [
        (deep, Layout(dp=2)),
        (deep, Layout(pp=2, microbatches=2, schedule="zb-h1")),
        (tied, Layout(mp=2, split=TIED)),
        (images, Layout(mp=2, split=IMAGES)),
        (images, Layout(dp=2, hybrid="owt", scheme="b")),
    ],
    3: [
        (tied, Layout(mp=3, split=TIED)),
        (deep, Layout(pp=3, microbatches=3)),
        (towers, Layout(mp=3, split={"branches": "towers"})),
        (images, Layout(dp=3, hybrid="owt", split={"fc": "input"})),
    ],
    4: [
        (tied, Layout(dp=2, mp=2, microbatches=2, split=TIED)),
        (images, Layout(dp=2, mp=2, split=IMAGES)),
        (deep, Layout(mp=2, pp=2, microbatches=2)),
    ],
    8: [
        (deep, Layout(dp=2, mp=2, pp=2, microbatches=2)),
        (images, Layout(dp=2, mp=2, pp=2, microbatches=2, split=IMAGES, schedule="gpipe")),
    ],
}


def experiment(build, make=sgd, clip_norm=None):
    random = np.random.default_rng(3)
    x, y = random.random((40, 1, 8, 8)), random.integers(0, 5, 40)
    return Experiment(build, x, y, make, 11, 5, seed=1, clip_norm=clip_norm)


@functools.cache
def serial(build, make, clip_norm, microbatches):
    return record(experiment(build, make, clip_norm), Layout(microbatches=microbatches))


def mesh_of(comm, layout):
    return Mesh(comm, data=layout.dp, model=layout.mp, pipe=layout.pp)


def comparisons(comm, make, clip_norm=None, only=None):
    """Of each layout with the serial run, which rank 0 makes; on every rank."""
    for build, layout in LAYOUTS[comm.size]:
        if only is not None and build is not only:
            continue
        mesh = mesh_of(comm, layout)
        parallel, comparison = record(experiment(build, make, clip_norm), layout, mesh), None
        if comm.rank == 0:
            comparison = compare(serial(build, make, clip_norm, layout.microbatches), parallel)
        yield comm.broadcast_object(comparison)
        mesh.free()


@pytest.mark.sampled(2)
@pytest.mark.ranks(1, 2, 3, 4, 8)
@pytest.mark.parametrize(
    ("make", "clip_norm"),
    [
        (sgd, 0.05),
        *(pytest.param(make, clip, marks=pytest.mark.grid) for make, clip in ((adam, 0.05), (lars, None))),
        (lars, 0.05),
    ],
)
def test_five_steps_equal_the_serial_run(comm, make, clip_norm):
    for comparison in comparisons(comm, make, clip_norm):
        assert comparison.equal, comparison.message


@pytest.mark.ranks(2)
@pytest.mark.parametrize("build", [deep, tied, images])
def test_the_norm_is_that_of_all_gradients(comm, build):
    """As NumPy has it from the whole gradients; so it really clips, in every step of the tests above."""
    for layout in [layout for other, layout in LAYOUTS[comm.size] if other is build]:
        what, mesh = experiment(build), mesh_of(comm, layout)
        trainer = start(what, layout, mesh)
        for batch in batches(what, trainer):
            trainer.compute_gradients(batch)
            named_gradients = zip(trainer.names, trainer.optimizer.parameters, strict=True)
            whole = trainer.whole({name: np.array(p.grad) for name, p in named_gradients})
            expected = np.sqrt(sum((gradient**2).sum() for gradient in whole.values()))
            assert trainer.gradient_norm() == pytest.approx(expected, rel=1e-12)
            assert expected > 0.1
            trainer.clip_norm = 0.05
            assert trainer.update() == pytest.approx(0.05 / (expected + 1e-6), rel=1e-12)
        trainer.clip_norm = 1e9
        assert trainer.update() == 1
        trainer.free()
        mesh.free()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(("make", "clip_norm"), [(sgd, 0.05), (lars, None)])
def test_what_every_rank_counts_is_too_much(comm, monkeypatch, make, clip_norm):
    """A matrix that no rank has cut, counted by each of them: the runs differ. (In LARS's ratio by eps alone.)"""
    monkeypatch.setattr(GlobalNorms, "counted_once", lambda self, squares, parameters: squares)
    for comparison in comparisons(comm, make, clip_norm, only=tied):
        assert not comparison.equal
        assert comparison.worst.quantity != "replicas"
        assert make is lars or comparison.worst.error > 1e-4


@pytest.mark.ranks(2)
def test_pieces_that_are_not_made_whole_are_too_little(comm, monkeypatch):
    monkeypatch.setattr(GlobalNorms, "give_to", lambda self, optimizer: None)
    for comparison in comparisons(comm, lars, only=tied):
        assert not comparison.equal


def test_clipping_is_that_of_torch():
    torch = pytest.importorskip("torch")
    what = experiment(tied, lambda parameters: optim.SGD(parameters, 1.0), clip_norm=0.05)
    trainer = start(what, Layout(), Mesh.serial())
    trainer.compute_gradients(next(batches(what, trainer)))
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in trainer.optimizer.parameters]
    for parameter, p in zip(theirs, trainer.optimizer.parameters, strict=True):
        parameter.grad = torch.tensor(p.grad)
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.05)
    torch.optim.SGD(theirs, 1.0).step()
    assert trainer.gradient_norm() == pytest.approx(norm.item(), rel=1e-12)
    trainer.update()
    for parameter, p in zip(theirs, trainer.optimizer.parameters, strict=True):
        np.testing.assert_allclose(p.data, parameter.detach().numpy(), rtol=1e-12)


@pytest.mark.ranks(4)
def test_lars_between_microbatches(comm):
    """An asynchronous pipeline of split stages: the ranks of a stage ask for norms together."""
    what, layout = experiment(tied, lars), Layout(1, 2, 3, TIED, 2, "pipedream")
    trainer = start(what, layout, mesh_of(comm, layout))
    for batch in batches(what, trainer):
        assert len(trainer.step(batch)) == 3
    assert len(set(comm.all_gather_object(trainer.weights_sha256()))) == 1
    trainer.free()


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_norm_that_cannot_be(value):
    with pytest.raises(InputError, match=f"clip_norm {value}: must be a finite number above 0"):
        start(experiment(deep, clip_norm=value), Layout(), Mesh.serial())


def test_no_norm_between_microbatches():
    layout = Layout(microbatches=2, schedule="pipedream")
    with pytest.raises(InputError, match=r"clip_norm 1\.0: pipedream updates each stage by itself"):
        start(experiment(deep, clip_norm=1.0), layout, Mesh.serial())


@pytest.mark.ranks(2)
def test_variable_batch(comm):
    """LARS asks for norms after each part; there is none of all gradients to clip by."""
    layout = Layout(dp=2, hybrid="owt", scheme="c", variable_batch=True)
    what = experiment(images, lars)
    trainer = start(what, layout, mesh_of(comm, layout))
    for batch in batches(what, trainer):
        trainer.step(batch)
    assert len(set(comm.all_gather_object(trainer.weights_sha256()))) == 1
    trainer.free()
    with pytest.raises(InputError, match=r"clip_norm 1\.0: with variable_batch"):
        start(experiment(images, clip_norm=1.0), layout, mesh_of(comm, layout))

"""The look at batches, apart from any run: it sees a loader that gives other samples than it says."""

import dataclasses

import pytest

from parallel_dl.datasets import Batch, Loader
from parallel_dl.equivalence import synthetic_experiment
from parallel_dl.equivalence.checks.batches import wrong_batches
from parallel_dl.equivalence.mutants import NETWORKS
from parallel_dl.layout import Layout

BUILD, SHAPE = NETWORKS["fully"]


@pytest.mark.parametrize("dp", [1, 2, 3, 8])
@pytest.mark.parametrize("microbatches", [1, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 5, 13, 40])
def test_the_loader_is_right(dp, microbatches, batch_size):
    what = synthetic_experiment(BUILD, SHAPE, 6, batch_size)
    assert wrong_batches(what, Layout(dp=dp, microbatches=microbatches)) is None


def changed(monkeypatch, change):
    right = Loader._batch

    def wrong(loader, order, step):
        batch = right(loader, order, step)
        return Batch(batch.step, batch.size, [change(loader, part) for part in batch.microbatches])

    monkeypatch.setattr(Loader, "_batch", wrong)


def lost(loader, part):
    return dataclasses.replace(part, x=part.x[loader.rank == 0 :], y=part.y[loader.rank == 0 :])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lost, "its share begins at sample"),
        (lambda loader, part: dataclasses.replace(part, size=13), "divides by 13, but the batch has 8 samples"),
        (lambda loader, part: dataclasses.replace(part, of_all=len(part.x)), "on all ranks, which have"),
        (lambda loader, part: dataclasses.replace(part, y=part.y[::-1]), "targets of other samples"),
        (lambda loader, part: dataclasses.replace(part, x=part.x // 2, y=part.y // 2), "every sample once"),
        (lambda loader, part: dataclasses.replace(part, x=part.x[:0], y=part.y[:0]), "the ranks have 0 samples"),
    ],
)
def test_wrong_loaders_are_seen(monkeypatch, change, words):
    changed(monkeypatch, change)
    assert words in wrong_batches(synthetic_experiment(BUILD, SHAPE, 6, 13), Layout(dp=2, microbatches=2))


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        (lambda loader, epoch: (loader.seed, 0), "another epoch has the same order"),
        (lambda loader, epoch: (0, epoch), "another seed has the same order"),
    ],
)
def test_the_same_order_for_another_epoch_or_seed_is_caught(monkeypatch, drawn, words):
    right = Loader.epoch

    def wrong(loader, epoch):
        loader.seed, epoch = drawn(loader, epoch)
        return right(loader, epoch)

    monkeypatch.setattr(Loader, "epoch", wrong)
    assert words in wrong_batches(synthetic_experiment(BUILD, SHAPE, 6, 13), Layout(dp=2))

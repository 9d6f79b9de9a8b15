"""Losses of scores that are split by class: values and gradients of the serial ones, and what they refuse."""

import dataclasses

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.autograd import Tensor, no_grad
from parallel_dl.datasets import Dataset
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mesh import even, slices
from parallel_dl.model_parallel import TAKE_SLICES, parallelize, split_loss
from parallel_dl.mpi import Mesh
from parallel_dl.reproducible import Leaves
from parallel_dl.reproducible.losses import LeafLoss
from parallel_dl.trainer import Trainer

CLASSES = 7


def scores(samples=9, scale=1.0):
    return scale * np.random.default_rng(2).standard_normal((samples, CLASSES))


def targets_for(loss, samples=9):
    if loss is nn.mse:
        return np.random.default_rng(3).standard_normal((samples, CLASSES))
    return np.arange(samples) % CLASSES  # every class, so every border of the slices


def both(comm, loss, z, targets, total=None, sizes=None):
    """((value, gradient) of the serial loss, those of the split one; its value is the sum of summands if it is so)."""
    whole = Tensor(z.copy(), requires_grad=True)
    value = loss(whole, targets, total)
    value.backward()
    sizes = even(CLASSES, comm.size) if sizes is None else sizes
    own = Tensor(z[:, slices(sizes)[comm.rank]].copy(), requires_grad=True)
    part = split_loss(loss, sizes, comm)(own, targets, total)
    part.backward()
    of_all = part.item() if loss is nn.cross_entropy else comm.all_reduce(part.data).item()
    return (value.item(), whole.grad), (of_all, comm.all_gather(own.grad, 1, sizes))


@pytest.mark.ranks(1, 2, 3, 8)
@pytest.mark.parametrize("total", [None, 1, 20.5])
@pytest.mark.parametrize("loss", TAKE_SLICES, ids=lambda loss: loss.__name__)
def test_is_the_serial_loss(comm, loss, total):
    """7 classes on 8 ranks: one rank has none."""
    serial, split = both(comm, loss, scores(), targets_for(loss), total)
    np.testing.assert_allclose(split[0], serial[0], rtol=1e-13)
    np.testing.assert_allclose(split[1], serial[1], rtol=1e-12, atol=1e-15)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("loss", TAKE_SLICES, ids=lambda loss: loss.__name__)
def test_slices_of_any_sizes(comm, loss):
    sizes = (0, 7, 0)[: comm.size] if comm.size == 3 else (6, 1)
    serial, split = both(comm, loss, scores(), targets_for(loss), None, sizes)
    np.testing.assert_allclose(split[0], serial[0], rtol=1e-13)
    np.testing.assert_allclose(split[1], serial[1], rtol=1e-12, atol=1e-15)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_scores_far_from_zero(comm, offset):
    """exp of them would be infinite, or zero, but for the maximum, which may be on any rank."""
    z = scores(scale=300.0) + offset
    serial, split = both(comm, nn.cross_entropy, z, targets_for(nn.cross_entropy))
    assert np.isfinite(serial[0])
    np.testing.assert_allclose(split[0], serial[0], rtol=1e-12)
    np.testing.assert_allclose(split[1], serial[1], rtol=1e-10, atol=1e-15)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("loss", TAKE_SLICES, ids=lambda loss: loss.__name__)
def test_no_samples(comm, loss):
    serial, split = both(comm, loss, scores(0), targets_for(loss, 0))
    assert split[0] == serial[0] == 0
    assert split[1].shape == (0, CLASSES)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.cross_entropy, np.zeros(8, int)),
        (nn.cross_entropy, np.zeros(10, int)),
        (nn.cross_entropy, np.zeros((9, CLASSES), int)),
        (nn.cross_entropy, np.zeros(9)),
        (nn.cross_entropy, np.full(9, CLASSES)),
        (nn.cross_entropy, np.full(9, -1)),
        (nn.logistic_loss, np.zeros(8, int)),
        (nn.logistic_loss, np.zeros(9)),
        (nn.logistic_loss, np.full(9, CLASSES)),
        (nn.logistic_loss, np.zeros((9, CLASSES + 1))),
        (nn.mse, np.zeros((9, CLASSES + 1))),
        (nn.mse, np.zeros((8, CLASSES))),
        (nn.mse, np.zeros(9)),
        (nn.cross_entropy, np.ones(9, bool)),
        (nn.cross_entropy, np.full(9, 255, np.uint8)),
        (nn.cross_entropy, np.full(9, -1, np.int8)),
        (nn.logistic_loss, np.ones(9, bool)),
        (nn.logistic_loss, np.ones((9, CLASSES), bool)),
        (nn.logistic_loss, 1.5 * np.eye(9, CLASSES)[[0] * 9]),  # beyond 1 in a class of one rank alone
        (nn.mse, np.ones((9, CLASSES), bool)),
    ],
)
def test_targets_that_do_not_fit_are_refused_on_every_rank(comm, loss, targets):
    """As the serial loss does, and before anything is sent: no rank waits for another that has failed."""
    with pytest.raises(ValueError):  # noqa: PT011
        loss(Tensor(scores()), targets)
    sizes = even(CLASSES, comm.size)
    own = Tensor(scores()[:, slices(sizes)[comm.rank]])
    with pytest.raises(ValueError):  # noqa: PT011
        split_loss(loss, sizes, comm)(own, targets)
    if loss is not nn.mse:
        sizes = Leaves.even(CLASSES).of_ranks(comm.size)
        own = Tensor(scores()[:, slices(sizes)[comm.rank]])
        with pytest.raises(ValueError):  # noqa: PT011
            split_loss(in_leaves(loss), sizes, comm)(own, targets)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("loss", [nn.cross_entropy, nn.logistic_loss], ids=lambda loss: loss.__name__)
def test_labels_of_any_integer_type(comm, loss):
    """600 classes: the second rank's begin beyond what a byte can hold."""
    z, labels = np.random.default_rng(0).standard_normal((5, 600)), np.array([3, 0, 127, 17, 100])
    own = z[:, slices(even(600, comm.size))[comm.rank]]
    cut = Leaves.even(600).of_ranks(comm.size)
    expected = loss(z, labels).item()
    for dtype in ("int8", "uint8", "uint16", ">i2", ">u4", "uint64"):
        part = split_loss(loss, even(600, comm.size), comm)(own, labels.astype(dtype)).data
        total = part if loss is nn.cross_entropy else comm.all_reduce(part)
        assert total == pytest.approx(expected, rel=1e-13)
        of_leaves = split_loss(in_leaves(loss), cut, comm)
        own_leaves = z[:, slices(cut)[comm.rank]]
        assert of_leaves(own_leaves, labels.astype(dtype)).item() == pytest.approx(expected, rel=1e-13)


def in_leaves(loss):
    return LeafLoss(loss, lambda: 2, lambda losses: None)


# -- in a network --------------------------------------------------------------------------------------------------
def network():
    return nn.Sequential(fc1=nn.Linear(5, 8), relu=nn.ReLU(), fc2=nn.Linear(8, CLASSES))


SPLITS = {"fc1": "input", "fc2": "output"}


@pytest.mark.ranks(2)
def test_a_loss_that_nobody_told_of_is_refused(comm):
    def sharp(logits, targets, total=None):
        return nn.cross_entropy(logits, targets, total)

    parallel = parallelize(network(), comm, (5,), SPLITS)
    with pytest.raises(InputError, match=r"split by class, which sharp cannot take: pass it to"):
        parallel.loss(sharp)
    whole = parallelize(network(), comm, (5,), SPLITS, loss=sharp)
    assert whole.loss(sharp) is sharp
    with no_grad():
        assert whole.network(np.ones((2, 5), np.float32)).shape == (2, CLASSES)


@pytest.mark.ranks(1, 2, 4)
@pytest.mark.parametrize("loss", TAKE_SLICES, ids=lambda loss: loss.__name__)
def test_losses_of_a_training_are_those_of_all_classes(comm, loss):
    """Of summands, and of what every rank has; also in stages, and on 2 replicas of 2 ranks."""
    microbatches = 3
    random = np.random.default_rng(0)
    x, y = random.standard_normal((23, 5)), targets_for(loss, 23)
    data = Dataset("random", x, y, x, y, None if loss is nn.mse else CLASSES)
    sgd = lambda parameters: optim.SGD(parameters, 0.05, momentum=0.9)  # noqa: E731

    def trained(layout, mesh):
        trainer = Trainer(network().initialize(0, "float64"), sgd, layout, mesh, loss=loss, input_shape=(5,))
        result = trainer.fit(data, 7, steps=5)
        trainer.free()
        mesh.free()
        return result

    serial = trained(Layout(microbatches=microbatches), Mesh.serial())
    layouts = {1: [Layout()], 2: [Layout(mp=2, split=SPLITS)], 4: [Layout(2, 2, split=SPLITS)]}[comm.size]
    if comm.size == 4:
        layouts.append(Layout(mp=2, pp=2, split=SPLITS))
    for layout in layouts:
        layout = dataclasses.replace(layout, microbatches=microbatches)
        found = trained(layout, Mesh(comm, data=layout.dp, model=layout.mp, pipe=layout.pp))
        np.testing.assert_allclose(found.losses, serial.losses, rtol=1e-10)
        assert found.test_loss == pytest.approx(serial.test_loss, rel=1e-10)


@pytest.mark.ranks(1, 2, 4)
def test_accuracy_is_that_of_all_classes(comm):
    """Trainer.test and fit, on 2 replicas of 2 ranks, too: 23 samples, the classes divided."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((23, 5)), random.integers(0, CLASSES, 23)
    data = Dataset("random", x, y, x, y, CLASSES)
    sgd = lambda parameters: optim.SGD(parameters, 0.3, momentum=0.9)  # noqa: E731
    serial = Trainer(network().initialize(0, "float64"), sgd, Layout(), Mesh.serial()).fit(data, 7, epochs=20)
    dp = 2 if comm.size == 4 else 1
    layout = Layout(dp, comm.size // dp, split=SPLITS)
    mesh = Mesh(comm, data=dp, model=comm.size // dp)
    trainer = Trainer(network().initialize(0, "float64"), sgd, layout, mesh, input_shape=(5,))
    result = trainer.fit(data, 7, epochs=20)
    np.testing.assert_allclose(result.losses, serial.losses, rtol=1e-9)
    assert result.test_accuracy == serial.test_accuracy > 1.5 / CLASSES
    trainer.free()

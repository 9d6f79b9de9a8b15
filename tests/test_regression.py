"""Targets that are not classes: trained and tested in every layout as in the serial program, and no result is lost."""

import numpy as np
import pytest

from parallel_dl import autograd, datasets, networks, nn, optim
from parallel_dl.cli import losses
from parallel_dl.datasets import Dataset
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.trainer import Trainer


def data(tests=7, shape=(3,), samples=23):
    random = np.random.default_rng(5)
    x = random.standard_normal((samples + tests, 2, 4, 4))
    y = np.tanh(x.reshape(len(x), -1) @ random.standard_normal((32, int(np.prod(shape))))).reshape(-1, *shape)
    return Dataset.from_arrays("own", x[:samples], y[:samples], x[samples:], y[samples:], dtype="float64")


def absolute(predictions, targets, total=None):
    """A loss of your own: the sum of absolute differences."""
    return autograd.ops.divide(autograd.ops.sum(autograd.ops.absolute(predictions - targets)), total or len(targets))


def rounded(predictions, targets, total=None):
    """A loss that knows classes where its targets are floats."""
    return nn.cross_entropy(predictions, targets.argmax(axis=1), total)


def fit(mesh, layout, loss=nn.mse, found=None, batch_size=10, network="lenet5_small", **options):
    found = data() if found is None else found
    build = {
        "lenet5_small": networks.lenet5_small,
        "mlp": lambda shape, outputs: networks.MLP(shape, outputs, hidden=(9, 6)),
    }[network]
    model = build(found.input_shape, found.outputs).initialize(3, "float64", fill=False)
    sgd = lambda parameters: optim.SGD(parameters, 0.05, momentum=0.9)  # noqa: E731
    trainer = Trainer(model, sgd, layout, mesh, loss=loss, input_shape=found.input_shape, **options)
    result = trainer.fit(found, batch_size, seed=1, steps=5)
    weights = trainer.state_dict()
    trainer.free()
    return result, weights


def check(comm, layout, serial=None, **what):
    ours, of_ours = fit(Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp), layout, **what)
    theirs, of_theirs = fit(Mesh.serial(), serial or Layout(microbatches=layout.microbatches), **what)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-10)
    assert ours.test_loss == pytest.approx(theirs.test_loss, rel=1e-10)
    assert (ours.test_accuracy, theirs.test_accuracy) == (None, None)
    for name, array in of_theirs.items():
        np.testing.assert_allclose(of_ours[name], array, rtol=1e-8, atol=1e-10)
    return ours, theirs


@pytest.mark.ranks(2)
@pytest.mark.parametrize("loss", [nn.mse, absolute, rounded], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=2),
        Layout(dp=2, microbatches=3),
        Layout(mp=2),
        Layout(pp=2, microbatches=3),
        Layout(dp=2, hybrid="owt"),
    ],
    ids=lambda layout: f"dp{layout.dp}mp{layout.mp}pp{layout.pp}m{layout.microbatches}{layout.hybrid or ''}",
)
def test_two_ranks_train_what_one_does(comm, layout, loss):
    check(comm, layout, loss=loss)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("tests", [1, 2, 4])
def test_shares_of_the_test_set_may_be_empty_and_uneven(comm, tests):
    for layout in (Layout(dp=3), Layout(pp=3, microbatches=2)):
        check(comm, layout, found=data(tests, ()).with_flat_targets(), network="mlp")


@pytest.mark.ranks(4)
def test_both_at_once(comm):
    check(comm, Layout(dp=2, mp=2, microbatches=2))
    check(comm, Layout(dp=2, pp=2, microbatches=2))


@pytest.mark.ranks(2)
def test_reproducible_bits(comm):
    layout = Layout(dp=2, reproducible=True)
    ours, theirs = check(comm, layout, Layout(reproducible=True), network="mlp")
    assert (ours.losses, ours.test_loss) == (theirs.losses, theirs.test_loss)


@pytest.mark.ranks(2)
def test_classes_have_a_loss_and_an_accuracy(comm):
    """In shares: of both, the mean over all test samples; the numbers are those of the network itself."""
    digits = datasets.load("digits", dtype="float64")
    x, y = digits.x_test[:101], digits.y_test[:101]
    for layout in (Layout(dp=2), Layout(mp=2), Layout(pp=2, microbatches=2), Layout(dp=2, reproducible=True)):
        model = networks.MLP(digits.input_shape, 10).initialize(0, "float64", fill=False)
        mesh = Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp)
        trainer = Trainer(model, lambda p: optim.SGD(p, 0.1), layout, mesh, input_shape=digits.input_shape)
        found = trainer.test(x, y, 7)
        scores = networks.MLP(digits.input_shape, 10).initialize(0, "float64")(x)
        assert found.loss == pytest.approx(nn.cross_entropy(scores, y).item(), rel=1e-12)
        assert found.accuracy == (scores.data.argmax(axis=1) == y).mean()
        assert found.note is None
        nothing = trainer.test(x[:0], y[:0])
        assert (nothing.loss, nothing.accuracy, nothing.note) == (None, None, "test loss: there are no samples")
        trainer.free()


def only_in_training(predictions, targets, total=None):
    if not autograd.is_grad_enabled():
        raise RuntimeError("not in a test,\nplease")
    return nn.mse(predictions, targets, total)


@pytest.mark.ranks(2)
def test_a_loss_that_fails_in_the_test_costs_no_result(comm):
    for layout in (Layout(dp=2), Layout(mp=2), Layout(pp=2, microbatches=2)):
        result, _ = fit(Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp), layout, loss=only_in_training)
        assert len(result.losses) == 5
        assert (result.test_loss, result.test_accuracy) == (None, None)
        assert result.note == "test loss: RuntimeError: not in a test, please"


class OneWay(nn.Module):
    """Forward in training only."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 3)

    def forward(self, x):
        if not self.training:
            raise NotImplementedError("in training only")
        return self.fc(x.reshape(len(x), 32))


@pytest.mark.ranks(2)
def test_a_network_that_fails_in_the_test_costs_no_result(comm):
    sgd = lambda parameters: optim.SGD(parameters, 0.1)  # noqa: E731
    trainer = Trainer(OneWay().initialize(0, "float64"), sgd, Layout(dp=2), Mesh(comm, data=2), loss=nn.mse)
    result = trainer.fit(data(), 10, steps=2)
    trainer.free()
    assert (len(result.losses), result.test_loss, result.test_accuracy) == (2, None, None)
    assert result.note == "test loss: NotImplementedError: in training only"


def test_targets_of_any_shape_stay_as_they_are():
    for shape in ((), (1,), (2, 3)):
        found = data(shape=shape)
        assert (found.classes, found.y_train.shape[1:]) == (None, shape)
        assert found.outputs == int(np.prod(shape))
        flat = found.with_flat_targets()
        assert flat.y_test.shape == (7, found.outputs)
        np.testing.assert_array_equal(flat.y_test.ravel(), found.y_test.ravel())
    digits = datasets.load("digits")
    assert digits.with_flat_targets() is digits
    assert digits.outputs == digits.classes == 10


@pytest.mark.parametrize("kind", ["f2", ">f4", "f8"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_npz_with_float_targets(tmp_path, kind, dtype):
    y = np.linspace(-1, 1, 12).reshape(6, 2).astype(kind)
    np.savez(tmp_path / "a.npz", x_train=np.ones((4, 3)), y_train=y[:4], x_test=np.ones((2, 3)), y_test=y[4:])
    found = datasets.load(tmp_path / "a.npz", dtype=dtype)
    assert found.classes is None
    np.testing.assert_array_equal(found.y_train, y[:4].astype(dtype), strict=True)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (np.zeros((4, 2)), np.zeros((2, 3)), "targets of shape (3,), but a has (2,)"),
        (np.zeros((4, 0)), np.zeros((2, 0)), "targets without values"),
        (np.zeros(3), np.zeros(2), "3 targets for the 4 samples"),
        (np.array([0, 1, np.nan, np.inf]), np.zeros(2), "2 of 4 values are not finite as float32, the first is nan"),
        (np.array([0, 1, 1e300, 0]), np.zeros(2), "1 of 4 values is not finite as float32"),
        (np.float64(3), np.zeros(2), "targets of shape ()"),
        (np.array([0, 1, 0, 0.5]), np.zeros(2, int), "whole numbers from 0 to 999999, or floats in both parts"),
        (np.zeros((4, 2), int), np.zeros((2, 2), int), "one class number per sample, or floats (n, ...)"),
        (np.zeros(4, complex), np.zeros(2, complex), "element type complex128"),
    ],
)
def test_targets_that_are_none(train, test, said):
    with pytest.raises(InputError) as caught:
        Dataset.from_arrays("own", np.ones((4, 3)), train, np.ones((2, 3)), test, called=("x", "a", "u", "b"))
    assert said in str(caught.value)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_classes_written_as_floats_are_classes_where_a_loss_wants_them(shape):
    x, y = np.zeros((6, 4)), np.array([0.0, 1, 2, 0, 1, 2]).reshape(shape)
    found = Dataset.from_arrays("own", x, y, x, y).with_flat_targets()
    assert found.classes is None
    as_classes = losses.fitted("cross-entropy", found)
    assert (as_classes.classes, as_classes.y_train.dtype, as_classes.y_train.shape) == (3, np.int64, (6,))
    assert as_classes.with_classes() is as_classes
    assert losses.fitted("mse", found) is found


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ([0, 1.5], ""),
        ([-1, 0], ""),
        ([0, 2e6], ""),
        ([[0, 1.5], [1, 0]], ""),
        ([[0, 1], [1, 0]], r" \(of one-hot targets: y.argmax\(-1\)\), or loss logistic for several answers in 0..1"),
        ([[0, 1], [1, 1]], r" \(of one-hot targets: y.argmax\(-1\)\), or loss logistic for several answers in 0..1"),
    ],
)
def test_floats_that_are_no_classes(values, more):
    x, y = np.zeros((2, 4)), np.array(values, float)
    found = Dataset.from_arrays("own", x, y, x, y)
    said = f"not class numbers; use loss mse to predict values, or give class numbers{more}$"
    with pytest.raises(InputError, match=said):
        losses.fitted("cross-entropy", found)
    for other in ("mse", "logistic") if more else ("mse",):  # what the line names is taken
        assert losses.fitted(other, found) is found


@pytest.mark.ranks(2)
def test_what_is_reported(comm):
    """A serial run on each rank: what is reported is the loss of the network as it is in the end."""
    found = data(shape=()).with_flat_targets()
    network = networks.MLP(found.input_shape, 1).initialize(0, "float64")
    trainer = Trainer(network, lambda p: optim.Adam(p, 0.01), Layout(), Mesh.serial(), loss=nn.mse)
    result = trainer.fit(found, 23, epochs=60)
    assert result.losses[-1] < result.losses[0] / 10
    expected = ((network(found.x_test).data - found.y_test) ** 2).mean()
    assert result.test_loss == pytest.approx(expected, rel=1e-12)

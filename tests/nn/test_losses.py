"""The logistic loss: its formula, its slices, PyTorch's values, large scores, and what it refuses."""

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.autograd.ops.classification import one_hot
from parallel_dl.errors import InputError


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def loss_and_gradient(logits, targets, total=None):
    z = Tensor(logits, requires_grad=True)
    loss = nn.logistic_loss(z, targets, total)
    loss.backward()
    return loss.data, z.grad


def test_each_class_is_a_question_of_its_own():
    logits, labels = random(6, 4), np.array([0, 3, 1, 1, 2, 0])
    expected = sum(
        np.log(1 + np.exp(-z if label == c else z)) for row, label in zip(logits, labels) for c, z in enumerate(row)
    )
    for targets in (labels, labels.astype(np.uint8), Tensor(labels), np.eye(4)[labels], np.eye(4, dtype=int)[labels]):
        assert nn.logistic_loss(logits, targets, total=1).item() == pytest.approx(expected, rel=1e-14)
        assert nn.logistic_loss(logits, targets).item() == pytest.approx(expected / 6, rel=1e-14)
    soft = np.random.default_rng(1).uniform(size=(6, 4))
    expected = (soft * np.log(1 + np.exp(-logits)) + (1 - soft) * np.log(1 + np.exp(logits))).sum()
    assert nn.logistic_loss(logits, soft, 8).item() == pytest.approx(expected / 8, rel=1e-14)


def test_slices_of_classes_and_shares_of_samples_add_up():
    """What ranks compute that each have some of the classes, or some of the samples; some have none."""
    logits, labels = random(6, 7), np.array([0, 3, 6, 1, 2, 0])
    loss, gradient = loss_and_gradient(logits, labels)
    answers = one_hot(labels, 7, float, "loss")
    cuts = [slice(0, 3), slice(3, 3), slice(3, 7)]
    for places in ([(slice(None), cut) for cut in cuts], cuts):
        parts = [Tensor(logits[place], requires_grad=True) for place in places]
        losses = [ops.logistic_loss(part, targets=answers[place], total=6) for part, place in zip(parts, places)]
        assert sum(part.item() for part in losses) == pytest.approx(loss, rel=1e-14)
        for part, summand, place in zip(parts, losses, places):
            summand.backward()
            np.testing.assert_allclose(part.grad, gradient[place], rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torch_agrees(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'parallel_dl[bench]')")
    logits = (5 * random(9, 5)).astype(dtype)
    for targets in (
        np.eye(5, dtype=dtype)[[0, 1, 2, 3, 4, 4, 3, 2, 1]],
        np.random.default_rng(1).random((9, 5), dtype),
    ):
        theirs = torch.from_numpy(logits.copy()).requires_grad_()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(theirs, torch.from_numpy(targets), reduction="sum")
        (loss / 9).backward()
        own_loss, own_gradient = loss_and_gradient(logits, targets)
        rtol = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(own_loss, loss.item() / 9, rtol=rtol)
        np.testing.assert_allclose(own_gradient, theirs.grad.numpy(), rtol=rtol, atol=rtol)
        assert (own_loss.dtype, own_gradient.dtype) == (dtype, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores(dtype):
    """Nothing overflows, and small losses and gradients are not rounded to 0."""
    z = np.array([[1000, -1000, 1000, -1000, 30, -30]], dtype)
    tail = np.exp(-30.0)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for answers, loss, gradient in (
            ([1, 0, 1, 0, 1, 0], 2 * tail, [0, 0, 0, 0, -tail, tail]),
            ([0, 1, 0, 1, 0, 1], 4060, [1, -1, 1, -1, 1, -1]),
            ([0.5] * 6, 2030, [0.5, -0.5, 0.5, -0.5, 0.5, -0.5]),
        ):
            found = loss_and_gradient(z, np.array([answers], float))
            np.testing.assert_allclose(found[0], loss, rtol=1e-6)
            np.testing.assert_allclose(found[1], [gradient], rtol=1e-6)


def test_nothing_to_add_up():
    for logits, targets in (
        (np.zeros((0, 4)), np.zeros(0, int)),
        (np.zeros((0, 4)), np.zeros((0, 4))),
        (np.zeros((3, 0)), np.zeros((3, 0))),
        (np.zeros((0, 0)), np.zeros(0, int)),
    ):
        loss, gradient = loss_and_gradient(logits, targets)
        assert (loss, gradient.shape) == (0, logits.shape)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (np.array([0, 1, 3, 0]), r"targets must be in 0\.\.2, found 0\.\.3"),
        (np.array([0, -1, 2, 0]), r"targets must be in 0\.\.2, found -1\.\.2"),
        (np.array([0.0, 1, 2, 0]), "targets must be integers, not float64"),
        (np.array([0, 1, 2]), r"logits \(4, 3\) do not fit targets \(3,\)"),
        (np.zeros((4, 1)), r"logits \(4, 3\) do not fit targets \(4, 1\)"),
        (np.full((4, 3), 1.01), r"targets must be in 0\.\.1, found 1\.01\.\.1\.01"),
        (np.full((4, 3), -1), r"targets must be in 0\.\.1, found -1\.\.-1"),
        (np.full((4, 3), np.nan), r"targets must be in 0\.\.1, found nan"),
        (np.full((4, 3), "1"), r"targets must be numbers in 0\.\.1, not <U1"),
        (np.ones((4, 3), bool), r"targets must be numbers in 0\.\.1, not bool"),
        (np.ones(4, bool), r"targets must be integers, not bool"),
    ],
)
def test_what_is_refused(targets, said):
    with pytest.raises(ValueError, match=rf"^(logistic_loss: )?{said}"):
        nn.logistic_loss(random(4, 3), targets)


def test_the_operation_broadcasts_nothing():
    with pytest.raises(ValueError, match=r"^logistic_loss: logits \(4, 3\) do not fit targets \(3,\)"):
        ops.logistic_loss(random(4, 3), targets=np.zeros(3))


TYPES = ["int8", "uint8", "int16", "uint16", ">i2", "<i4", ">u4", "int64", ">i8", "uint64"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("of_classes", [nn.cross_entropy, nn.logistic_loss])
def test_labels_of_any_integer_type(of_classes, dtype):
    """600 classes are more than a byte can count."""
    logits, labels = random(5, 600), np.array([3, 0, 127, 17, 100])
    expected = of_classes(logits, labels).item()
    assert of_classes(logits, labels.astype(dtype)).item() == expected
    assert of_classes(logits, Tensor(labels.astype(dtype))).item() == expected
    z = Tensor(logits, requires_grad=True)
    ops.cross_entropy(z, targets=labels.astype(dtype)).backward()
    assert (z.grad < 0).nonzero()[1].tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (np.array([True, True]), "must be integers, not bool; class numbers are integers after .astype"),
        (np.array([0.0, 1.0]), r"must be integers, not float64; .*\.astype\(int\), and values to predict .* nn\.mse"),
        (
            np.eye(3)[:2],
            r"not float64; one-hot .* \.argmax\(-1\); answers for each class to nn\.logistic_loss, .* nn\.mse",
        ),
        (np.eye(3, dtype=bool)[:2], r"not bool; one-hot .* \.argmax\(-1\); .* to nn\.logistic_loss, as floats, "),
        (np.eye(3, dtype=int)[:2], r"logits \(2, 3\) do not fit targets \(2, 3\); one-hot .* by \.argmax\(-1\)"),
        (np.array(["0", "1"]), "must be integers, not <U1"),
        (np.array([0, -1], np.int8), r"must be in 0\.\.2, found -1\.\.0"),
        (np.array([0, 255], np.uint8), r"must be in 0\.\.2, found 0\.\.255"),
        (np.array([0, 2**64 - 1], np.uint64), r"must be in 0\.\.2, found 0\.\.18446744073709551615"),
        (np.array([0, 1, 2]), r"logits \(2, 3\) do not fit targets \(3,\)"),
        (np.array([[0], [1]]), r"logits \(2, 3\) do not fit targets \(2, 1\)"),
    ],
)
def test_class_numbers_that_are_none(targets, said):
    """The operation itself, too: as an index, booleans are a mask, and -1 is the last class."""
    for loss in (nn.cross_entropy, lambda z, y: ops.cross_entropy(z, targets=y)):
        with pytest.raises(InputError, match=f"^cross_entropy: .*{said}"):
            loss(random(2, 3), targets)


def test_other_losses_refuse_booleans():
    with pytest.raises(InputError, match=r"^logistic_loss: targets must be numbers in 0\.\.1, not bool"):
        ops.logistic_loss(random(2, 3), targets=np.ones((2, 3), bool))
    with pytest.raises(InputError, match=r"^mse: targets must be numbers, not bool"):
        nn.mse(random(2, 3), np.ones((2, 3), bool))


def test_what_a_refusal_names_can_be_done():
    logits, one_hot = random(2, 3), np.eye(3)[:2]
    assert nn.cross_entropy(logits, one_hot.argmax(-1)).item() > 0
    assert nn.cross_entropy(logits, np.array([0.0, 1.0]).astype(int)).item() > 0
    assert nn.logistic_loss(logits, one_hot).item() > 0
    assert nn.logistic_loss(logits, one_hot.astype(bool).astype(float)).item() > 0
    assert nn.mse(logits, one_hot).item() > 0

"""What rounding is judged against is the sum of the magnitudes that were added: no less, and no more."""

import dataclasses

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment, compare, record


def linear_experiment(steps):
    random = np.random.default_rng(3)
    x, y = random.standard_normal((12, 5)), random.standard_normal((12, 2))
    loss = lambda predictions, targets, total: nn.mse(predictions, targets, total=2 * total)  # noqa: E731
    return Experiment(lambda: nn.Linear(5, 2), x, y, lambda p: optim.SGD(p, 0.1), 12, steps, loss=loss)


def test_magnitudes_of_a_linear_layer_by_hand():
    what = linear_experiment(1)
    layer = nn.Linear(5, 2).initialize(what.seed, "float64")
    weight, bias = layer.weight.data.copy(), layer.bias.data.copy()
    errors = what.x @ weight.T + bias - what.y  # (samples, 2): each sample's loss is the sum of squares / 24
    each = np.abs(errors[:, :, None] * what.x[:, None, :]) / 12  # (samples, 2, 5): its gradient of the weight
    measured = record(what).magnitudes[0]
    np.testing.assert_allclose(measured["losses"][""], [(errors**2).sum() / 24], rtol=1e-12)
    np.testing.assert_allclose(measured["gradients"]["weight"], each.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(measured["gradients"]["bias"], np.abs(errors).sum(axis=0) / 12, rtol=1e-12)
    np.testing.assert_allclose(measured["weights"]["weight"], np.abs(weight) + 0.1 * each.sum(axis=0), rtol=1e-12)


def test_magnitudes_bound_what_they_judge():
    """|gradient| <= its magnitude, and where no terms cancel the two are equal: not a million times as large."""
    run = record(linear_experiment(3))
    for gradients, magnitudes in zip(run.gradients, run.magnitudes, strict=True):
        for name, gradient in gradients.items():
            ratio = np.abs(gradient) / magnitudes["gradients"][name]
            assert ratio.max() <= 1 + 1e-12
            assert ratio.max() > 1e-3


def test_the_sentence_about_no_difference_and_about_one():
    run = record(linear_experiment(2))
    assert compare(run, run).message == "equal: no difference at all (bound 1e-10)"
    assert compare(run, run, exact=True).message == "equal: no difference at all (bound 0e+00)"
    other = dataclasses.replace(run, losses=[run.losses[0], run.losses[1] * 2])
    assert compare(run, other).message.startswith("DIFFERENT: worst is loss at step 1, ")
    short = dataclasses.replace(run, losses=run.losses[:1])
    assert compare(short, run).message == "1 step in the serial run, 2 in the parallel one"


@pytest.mark.filterwarnings("error")
def test_adam_with_a_weight_that_no_sample_uses():
    """It has no gradient, and is not updated: its magnitude is its own, and nothing is divided by zero."""

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 4)), random.integers(0, 3, 5)
    run = record(Experiment(First, x, y, lambda parameters: optim.Adam(parameters, 0.01), 5, 2))
    assert np.array_equal(run.magnitudes[-1]["weights"]["unused.weight"], np.abs(run.weights[-1]["unused.weight"]))

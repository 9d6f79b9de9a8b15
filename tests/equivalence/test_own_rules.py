"""Magnitudes under a rule of the user's own are measured: for a known rule, written anew, they are the known ones."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment, record
from parallel_dl.equivalence.rounding.own_rules import is_known

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(9, 4)), RANDOM.integers(0, 3, 9)


class Momentum(optim.Optimizer):
    """As optim.SGD with momentum 0.9."""

    rule = "own momentum"

    def state_of(self, options):
        return ("momentum",)

    def _update(self, options, rate, updates, weights, gradient, momentum):
        momentum *= 0.9
        momentum += gradient
        weights -= rate * momentum


class Moments(optim.Optimizer):
    """As optim.Adam."""

    rule = "own moments"

    def state_of(self, options):
        return ("first_moment", "second_moment")

    def _update(self, options, rate, updates, weights, gradient, first, second):
        first[...] = 0.9 * first + 0.1 * gradient
        second[...] = 0.999 * second + 0.001 * gradient**2
        count = updates + 1
        divisor = np.sqrt(second / (1 - 0.999**count)) + 1e-3
        weights -= rate * first / (1 - 0.9**count) / divisor


class OwnUpdate(optim.SGD):
    """Is called SGD, and is none."""

    def _update(self, options, rate, updates, weights, gradient, *state):
        weights -= rate * np.sign(gradient)


def recorded(make_optimizer, **options):
    build = lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))  # noqa: E731
    return record(Experiment(build, X, Y, make_optimizer, 9, 3, **options)).magnitudes


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.05}])
def test_a_linear_rule(options):
    known = recorded(lambda p: optim.SGD(p, 0.1, momentum=0.9), **options)
    for own, others in zip(recorded(lambda p: Momentum(p, 0.1), **options), known, strict=True):
        for kind in ("state", "weights"):
            assert own[kind].keys() == others[kind].keys()
            for name, magnitudes in own[kind].items():
                np.testing.assert_allclose(magnitudes, others[kind][name], rtol=1e-5)


def test_a_rule_that_is_not_linear():
    """What is known of Adam takes its divisor as it is. Measured it moves along: the first update is a sign."""
    known = recorded(lambda p: optim.Adam(p, 0.01, eps=1e-3))
    for own, others in zip(recorded(lambda p: Moments(p, 0.01)), known, strict=True):
        for name, magnitudes in own["weights"].items():
            assert (magnitudes <= 2 * others["weights"][name]).all()
            assert (magnitudes >= 0.1 * others["weights"][name]).mean() > 0.9


def test_float32():
    known = recorded(lambda p: optim.SGD(p, 0.1, momentum=0.9), dtype="float32")
    own = recorded(lambda p: Momentum(p, 0.1), dtype="float32")
    for name, magnitudes in own[-1]["weights"].items():
        np.testing.assert_allclose(magnitudes, known[-1]["weights"][name], rtol=1e-2)


def test_whose_rule_is_known():
    p = nn.Linear(2, 2).parameters()
    known = [optim.SGD(p, 0.1), optim.Adam(p), optim.AdamW(p), optim.LARS(p, 0.1)]
    assert [is_known(one) for one in known] == [True] * 4
    assert [is_known(one) for one in (Momentum(p, 0.1), OwnUpdate(p, 0.1))] == [False] * 2

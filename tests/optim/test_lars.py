"""LARS against algorithm 1 of its article, written down once more; and steps with a part of the gradient."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.errors import InputError

RULES = {
    "sgd": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.05, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, 0.05),
    "lars": lambda p: optim.LARS(p, 5, weight_decay=0.01),
}


def network():
    """A weight of more than one block, a scale and a shift, and weights that stay without gradients."""
    return nn.Sequential(nn.Linear(400, 200), nn.LayerNorm(200), nn.Linear(200, 3), nn.Linear(2, 2)).initialize(
        1, "float64"
    )


def gradients_of(model, random):
    parameters = model.parameters()
    return [random.normal(size=p.shape) if i < len(parameters) - 2 else None for i, p in enumerate(parameters)]


def by_the_article(w, gradients, rates, momentum, decay, trust=0.001, eps=1e-8):
    v = np.zeros_like(w)
    for rate, g in zip(rates, gradients, strict=True):
        ratio, beta = 1.0, 0.0
        if w.ndim > 1:
            beta = decay
            ratio = trust * np.linalg.norm(w) / (np.linalg.norm(g) + beta * np.linalg.norm(w) + eps)
        v = momentum * v + rate * ratio * (g + beta * w)
        w = w - v
    return w


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.05)])
def test_five_steps_follow_the_article(momentum, decay):
    """With a rate that changes: it is inside the velocity."""
    random = np.random.default_rng(0)
    model, policy = network(), optim.rates.cosine(3.0, 5)
    start = [p.data.copy() for p in model.parameters()]
    steps = [gradients_of(model, random) for _ in range(5)]
    optimizer = optim.LARS(model.parameters(), policy, momentum, decay, trust=0.02)
    for step in steps:
        for parameter, gradient in zip(model.parameters(), step, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for i, parameter in enumerate(model.parameters()):
        if steps[0][i] is None:
            assert np.array_equal(parameter.data, start[i])
            continue
        rates = [policy(k) for k in range(5)]
        expected = by_the_article(start[i], [step[i] for step in steps], rates, momentum, decay, 0.02)
        np.testing.assert_allclose(parameter.data, expected, rtol=1e-11, atol=1e-13)


def test_ratios_are_of_whole_weights():
    """`whole_squares` is asked once for all parameters: here it says that there are three pieces like ours."""
    model, asked = network(), []
    optimizer = optim.LARS(model.parameters(), trust=0.5, eps=0)
    optimizer.whole_squares = lambda squares: asked.append(squares.shape) or squares * [[12], [3]]
    weight = model[0].weight
    weight.grad = np.ones(weight.shape)
    ratio = 0.5 * 2 * np.linalg.norm(weight.data) / np.linalg.norm(weight.grad)
    optimizer.step()
    assert asked == [(2, len(model.parameters()))]
    assert optimizer.trust_ratios == pytest.approx([ratio] + [1] * (len(model.parameters()) - 1))


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_zeros_move_by_the_rate_itself(zero):
    layer = nn.Linear(3, 2).initialize(0, "float64")
    if zero == "weight":
        layer.weight.data[...] = 0
    before, gradient = layer.weight.data.copy(), np.full((2, 3), float(zero == "weight"))
    optimizer = optim.LARS(layer.parameters(), 0.1)
    layer.weight.grad = gradient
    optimizer.step()
    assert optimizer.trust_ratios == [1, 1]
    np.testing.assert_allclose(layer.weight.data, before - 0.1 * gradient)


@pytest.mark.parametrize("rule", RULES)
def test_a_scaled_step_is_one_with_the_scaled_gradient(rule):
    """The gradients stay as they are, also where nobody may write to them."""
    random = np.random.default_rng(2)
    scaled, plain = network(), network()
    ours, theirs = RULES[rule](scaled.parameters()), RULES[rule](plain.parameters())
    for _ in range(3):
        for p, q, gradient in zip(scaled.parameters(), plain.parameters(), gradients_of(scaled, random), strict=True):
            p.grad, q.grad = gradient, None if gradient is None else 0.25 * gradient
        kept = [None if p.grad is None else p.grad.copy() for p in scaled.parameters()]
        ours.step(0.25)
        theirs.step()
        for p, before in zip(scaled.parameters(), kept, strict=True):
            assert (p.grad is None) == (before is None)
            assert before is None or np.array_equal(p.grad, before)
    for p, q in zip(scaled.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-12, atol=1e-14)


def test_sums_of_squares():
    """In float32, too, over many blocks; of a transposed array as of any other."""
    array = np.full((3000, 1000), 0.1, np.float32)
    assert optim.sum_of_squares(array) == pytest.approx(3e6 * float(np.float32(0.1)) ** 2, rel=1e-6)
    assert optim.sum_of_squares(array[:, ::2].T) == pytest.approx(1.5e6 * float(np.float32(0.1)) ** 2, rel=1e-6)
    assert optim.sum_of_squares(np.zeros((0, 4))) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum 1.0: must be at least 0 and below 1"),
        ({"weight_decay": -1}, "weight_decay -1: must be a finite number, at least 0"),
        ({"trust": 0}, "trust 0: must be above 0"),
        ({"eps": -1e-9}, "eps -1e-09: must be at least 0"),
        ({"lr": -1}, "lr -1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        optim.LARS(nn.Linear(2, 2).parameters(), **options)

"""The update rules against their formulas, written down once more, value by value."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.errors import InputError


def reference(rule, w, gradients, lr, momentum=0.0, decay=0.0, nesterov=False, betas=(0.9, 0.999), eps=1e-8):
    w, v, m, s = w.copy(), np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        if rule == "adamw":
            w = w - lr * decay * w
        else:
            g = g + decay * w
        if rule == "sgd":
            v = momentum * v + g
            w = w - lr * (g + momentum * v if nesterov else v)
        else:
            m = betas[0] * m + (1 - betas[0]) * g
            s = betas[1] * s + (1 - betas[1]) * g * g
            w = w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(s / (1 - betas[1] ** t)) + eps)
    return w


CASES = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "decay": 0.01}),
    ("sgd", {"momentum": 0.9, "decay": 0.01, "nesterov": True}),
    ("adam", {}),
    ("adam", {"decay": 0.1, "betas": (0.8, 0.99)}),
    ("adamw", {"decay": 0.1}),
]


@pytest.mark.parametrize(("rule", "options"), CASES)
def test_five_steps_follow_the_formula(rule, options):
    random = np.random.default_rng(0)
    network = nn.Sequential(nn.Linear(300, 70), nn.Linear(70, 3)).initialize(1, "float64")
    start = [p.data.copy() for p in network.parameters()]
    gradients = [[random.normal(size=p.shape) for p in network.parameters()] for _ in range(5)]
    ours = {"decay": "weight_decay"}
    make = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}[rule]
    keywords = {ours.get(key, key): value for key, value in options.items()}
    if rule == "adam":
        keywords.setdefault("weight_decay", 0.0)
    optimizer = make(network.parameters(), lr=0.05, **keywords)
    for step in gradients:
        for parameter, gradient in zip(network.parameters(), step):
            parameter.grad = gradient
        optimizer.step()
    for i, parameter in enumerate(network.parameters()):
        expected = reference(rule, start[i], [step[i] for step in gradients], 0.05, **options)
        np.testing.assert_allclose(parameter.data, expected, rtol=1e-12, atol=1e-14)


def test_a_parameter_without_a_gradient_is_left_alone():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).initialize(0)
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = network.state_dict()
    network[0].weight.grad = np.ones((4, 4), np.float32)
    network[2].bias.grad = np.ones(4, np.float32)
    optimizer.step()
    changed = [name for name, value in network.state_dict().items() if not np.array_equal(value, before[name])]
    assert changed == ["0.weight", "2.bias"]


def test_state_continues_where_it_stopped():
    def train(network, optimizer, steps):
        for step in steps:
            for parameter in network.parameters():
                parameter.grad = np.full(parameter.shape, np.float32(step + 1))
            optimizer.step()

    whole, half = (nn.Linear(5, 3).initialize(0) for _ in range(2))
    train(whole, optim.Adam(whole.parameters(), optim.rates.cosine(0.1, 4)), range(4))
    first = optim.Adam(half.parameters(), optim.rates.cosine(0.1, 4))
    train(half, first, range(2))
    second = optim.Adam(half.parameters(), optim.rates.cosine(0.1, 4))
    second.load_state_dict(first.state_dict())
    train(half, second, range(2, 4))
    assert np.array_equal(whole.weight.data, half.weight.data)


def test_rates():
    assert optim.rates.constant(0.1)(99) == 0.1
    step = optim.rates.step(1.0, every=10, factor=0.5)
    assert [step(k) for k in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]
    cosine = optim.rates.cosine(1.0, 10, final=0.1)
    assert [cosine(0), cosine(5), cosine(10), cosine(50)] == pytest.approx([1, 0.55, 0.1, 0.1])
    warm = optim.rates.warmup(optim.rates.constant(1.0), 4)
    assert [warm(k) for k in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.SGD(p, -0.1), "lr -0.1: must be a finite number, at least 0"),
        (lambda p: optim.SGD(p, float("nan")), "lr nan"),
        (lambda p: optim.SGD(p, 0.1, momentum=1.0), "momentum 1.0: must be at least 0 and below 1"),
        (lambda p: optim.SGD(p, 0.1, nesterov=True), "nesterov: needs a momentum"),
        (lambda p: optim.Adam(p, 0.1, betas=(1, 0.9)), "beta 1: must be"),
        (lambda p: optim.AdamW(p, 0.1, weight_decay=-1), "weight_decay -1: must be a finite number, at least 0"),
        (lambda p: optim.SGD([], 0.1), "got no parameters"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(nn.Linear(2, 2).parameters())

"""State of an optimizer: unless it is of the same parameters under the same rule, all of it is refused."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.errors import InputError


def made(rule=optim.SGD, outputs=4, dtype="float64", **options):
    model = nn.Sequential(nn.Linear(3, outputs)).initialize(0, dtype)
    if rule in (optim.SGD, optim.LARS):
        options = {"momentum": 0.9, **options}
    optimizer = rule(model.parameters(), lr=0.1, **options)
    model(np.ones((2, 3), dtype)).sum().backward()
    optimizer.step()
    optimizer.network = model  # which has the names
    return optimizer


def broken(change):
    state = made().state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: made(outputs=1).state_dict(), r"0\.weight: momentum is float64 \(1, 3\), expected float64 \(4, 3\)"),
        (lambda: made(dtype="float32").state_dict(), r"momentum is float32 \(4, 3\), expected float64 \(4, 3\)"),
        (lambda: made(optim.Adam).state_dict(), "optimizer state of 'adam': expected that of 'sgd'"),
        (lambda: made(optim.LARS).state_dict(), "optimizer state of 'lars': expected that of 'sgd'"),
        (lambda: made(momentum=0.0).state_dict(), r"0\.weight: has nothing, expected momentum"),
        (lambda: broken(lambda s: s["state"].pop()), "optimizer state of 1 parameter for 2 parameters"),
        (lambda: broken(lambda s: s.pop("updates")), "'updates' is missing"),
        (
            lambda: broken(lambda s: s.update(updates=-1)),
            "number of updates is -1; expected a whole number, at least 0",
        ),
        (lambda: broken(lambda s: s.update(updates_of=[1, True])), "number of updates is True"),
        (
            lambda: broken(lambda s: s["state"][1].update(momentum=np.zeros((2, 2)))),
            r"0\.bias: momentum is float64 \(2",
        ),
    ],
)
def test_other_state_is_refused_whole(state, message):
    optimizer = made()
    before = optimizer.state_dict()
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(state())
    after = optimizer.state_dict()
    assert (after["updates"], after["updates_of"]) == (before["updates"], before["updates_of"])
    for own, was in zip(after["state"], before["state"]):
        np.testing.assert_array_equal(own["momentum"], was["momentum"])


def test_adam_and_adamw_are_two_rules():
    with pytest.raises(InputError, match="state of 'adamw': expected that of 'adam'"):
        made(optim.Adam).load_state_dict(made(optim.AdamW).state_dict())


def test_a_rule_of_the_users_own_takes_the_state_of_what_it_extends():
    class Slow(optim.SGD):
        def step(self, scale=1.0):
            super().step(0.5 * scale)

    own = made(Slow, momentum=0.9)
    own.load_state_dict(made().state_dict())
    assert own.updates == 1

"""An optimizer updates exactly the parameters it was given, each with the options of its group."""

import copy
import pickle

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.errors import InputError

RULES = {
    "sgd": lambda p, **own: optim.SGD(p, **{"lr": 0.05, "momentum": 0.9, **own}),
    "adam": lambda p, **own: optim.Adam(p, **{"lr": 0.05, **own}),
    "adamw": lambda p, **own: optim.AdamW(p, **{"lr": 0.05, "weight_decay": 0.1, **own}),
    "lars": lambda p, **own: optim.LARS(p, **{"lr": 0.5, "weight_decay": 0.1, **own}),
}


def network(seed=0):
    layers = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3)
    return nn.Sequential(*layers).initialize(seed, "float64")


def backward(model, seed=0):
    random = np.random.default_rng(seed)
    nn.cross_entropy(model(random.normal(size=(6, 4))), random.integers(0, 3, 6)).backward()


def changed(model, before):
    return {
        name.split(".")[0] for name, values in model.state_dict().items() if not np.array_equal(values, before[name])
    }


def updates(model, rule, of, steps=3, **own):
    """The weights after updates of the named layers alone, by a rule applied to nothing else."""
    model = copy.deepcopy(model)
    optimizer = RULES[rule]([p for name in of for p in model[int(name)].parameters()], **own)
    for step in range(steps):
        model.zero_grad()
        backward(model, step)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("others", [("0", "2", "4"), ("2", "4"), ("4",), ()])
@pytest.mark.parametrize("first", [True, False])
def test_an_optimizer_of_the_head_leaves_the_rest(rule, others, first):
    model, before = network(), network().state_dict()

    def make_other():
        return RULES[rule]([p for name in others for p in model[int(name)].parameters()]) if others else None

    kept = make_other() if first else None
    head = RULES[rule](model[4].parameters())
    kept = kept or make_other()
    for step in range(3):
        model.zero_grad()
        backward(model, step)
        head.step()
    assert changed(model, before) == {"4"}
    alone = updates(network(), rule, ["4"])
    assert all(np.array_equal(alone[name], values) for name, values in model.state_dict().items())


@pytest.mark.parametrize("rule", RULES)
def test_groups_are_optimizers_of_their_own(rule):
    """Two rates in one optimizer, in two optimizers, and value by value in an optimizer of one layer each."""
    grouped, apart = network(), network()
    together = RULES[rule](
        [{"params": grouped[0].parameters(), "lr": 0.01}, {"params": grouped[2].parameters() + grouped[4].parameters()}]
    )
    two = RULES[rule](apart[0].parameters(), lr=0.01), RULES[rule](apart[2].parameters() + apart[4].parameters())
    for step in range(3):
        for model, optimizers in ((grouped, (together,)), (apart, two)):
            model.zero_grad()
            backward(model, step)
            for optimizer in optimizers:
                optimizer.step(0.5)  # as clipping does
    for a, b in zip(grouped.parameters(), apart.parameters()):
        np.testing.assert_array_equal(a.data, b.data)


def test_every_option_may_differ_and_change():
    model = network()
    optimizer = optim.SGD(
        [{"params": model[0].parameters(), "momentum": 0.5}, {"params": model[2].parameters()}], lr=0.1
    )
    assert [sorted(state) for state in optimizer.state_dict()["state"]] == [["momentum"]] * 2 + [[]] * 2
    with pytest.raises(ValueError, match=r"each group has its own momentum: use param_groups\[i\]\['momentum'\]"):
        print(optimizer.momentum)
    optimizer.param_groups[1]["momentum"] = 0.5
    assert optimizer.momentum == 0.5
    backward(model)
    optimizer.step()
    assert [sorted(state) for state in optimizer.state_dict()["state"]] == [["momentum"]] * 4
    optimizer.lr = 0.0
    before = model.state_dict()
    optimizer.step()
    assert changed(model, before) == set()
    optimizer.param_groups[0]["lr"] = -1
    with pytest.raises(InputError, match="lr -1: must be a finite number, at least 0"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = lambda update: float("nan")
    with pytest.raises(InputError, match="lr nan"):
        optimizer.step()


def test_a_group_may_have_a_policy_of_its_own():
    model = network()
    optimizer = optim.SGD(
        [{"params": model[0].parameters(), "lr": optim.rates.step(0.1, 1, 0.5)}, {"params": model[2].parameters()}],
        lr=0.1,
    )
    for rate in (0.1, 0.05):
        before = model.state_dict()
        model.zero_grad()
        backward(model)
        optimizer.step()
        for layer, own in ((0, rate), (2, 0.1)):
            expected = before[f"{layer}.weight"] - own * model[layer].weight.grad
            np.testing.assert_allclose(model[layer].weight.data, expected, rtol=1e-14)


def test_a_group_can_be_added():
    model = network()
    optimizer = optim.Adam(model[0].parameters(), 0.1)
    backward(model)
    optimizer.step()
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.01})
    before = model.state_dict()
    optimizer.step()
    assert changed(model, before) == {"0", "2"}
    assert optimizer.updates_of() == [2, 2, 1, 1]
    # Adam's first update of a weight is its rate times the sign of the gradient
    step = before["2.weight"] - model[2].weight.data
    np.testing.assert_allclose(step, 0.01 * np.sign(model[2].weight.grad), rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            lambda m: [{"params": m.parameters(), "rate": 1}],
            InputError,
            "unknown option 'rate': expected one of params, lr, mom",
        ),
        (lambda m: [*m.parameters(), m[0].weight], InputError, r"the optimizer got 0\.weight twice"),
        (lambda m: [{"params": m.parameters()}, {"params": [m[2].bias]}], InputError, r"got 2\.bias twice"),
        (lambda m: [], InputError, "the optimizer got no parameters"),
        (lambda m: [{"lr": 1}], TypeError, "a dict with the key 'params'"),
        (lambda m: set(m.parameters()), TypeError, "a set, whose order differs from rank to rank: give a list"),
        (lambda m: m[0].weight, TypeError, "a list of parameters; for a single one"),
        (lambda m: [m[0].weight.data], TypeError, "item 0 is a ndarray, expected nn.Parameter"),
        (lambda m: [{"params": m.parameters(), "momentum": 2}], InputError, "momentum 2: must be"),
    ],
)
def test_what_cannot_be_given(given, error, message):
    model = network()
    with pytest.raises(error, match=message):
        optim.SGD(given(model), 0.1)


def test_the_parameters_of_a_group_are_not_changed_by_hand():
    model = network()
    optimizer = optim.SGD(model[0].parameters(), 0.1)
    optimizer.param_groups[0]["params"] = model.parameters()
    with pytest.raises(InputError, match="give further parameters to add_param_group"):
        optimizer.step()


def test_a_gradient_from_before_the_optimizer_is_applied():
    model, other = network(), network()
    backward(model)
    late = optim.SGD(model.parameters(), 0.1)
    late.step()
    early = optim.SGD(other.parameters(), 0.1)
    backward(other)
    early.step()
    assert all(np.array_equal(a.data, b.data) for a, b in zip(model.parameters(), other.parameters()))


# -- arrays that are replaced ---------------------------------------------------------------------------------------
def by_assignment(model, optimizer):
    for parameter in model.parameters():
        parameter.data = np.asfortranarray(parameter.data.copy())


def by_swapping(model, optimizer):
    a, b = model[2].bias, model[4].bias
    a.data, b.data = b.data, a.data
    a.data, b.data = b.data.copy(), a.data


def by_read_only_views(model, optimizer):
    for parameter in model.parameters():
        view = np.broadcast_to(parameter.data, (2, *parameter.shape))[1]
        parameter.data = view


def by_another_optimizer(model, optimizer):
    model.other = None  # an attribute that is no parameter
    optim.SGD([*model[2].parameters(), *model[0].parameters()], 0.1)


REPLACED = [by_assignment, by_swapping, by_read_only_views, by_another_optimizer]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("replace", REPLACED)
def test_training_goes_on_after_arrays_were_replaced(rule, replace):
    model, plain = network(), network()
    optimizer, reference = RULES[rule](model.parameters()), RULES[rule](plain.parameters())
    for step in range(4):
        if step == 2:
            replace(model, optimizer)
        for one, its in ((model, optimizer), (plain, reference)):
            one.zero_grad()
            backward(one, step)
            its.step()
    assert changed(plain, network().state_dict()) == {"0", "2", "4"}
    for a, b in zip(model.parameters(), plain.parameters()):
        np.testing.assert_array_equal(a.data, b.data)


def test_another_type_before_the_first_update_is_taken_and_later_refused():
    model, plain = network().initialize(0, "float32"), network()
    optimizer, reference = optim.Adam(model.parameters(), 0.1), optim.Adam(plain.parameters(), 0.1)
    model.initialize(0, "float64")
    for one, its in ((model, optimizer), (plain, reference)):
        backward(one)
        its.step()
    assert all(np.array_equal(a.data, b.data) for a, b in zip(model.parameters(), plain.parameters()))
    model.initialize(0, "float32")
    backward(model)
    before = model.state_dict()
    with pytest.raises(InputError, match=r"0\.weight is float32 now, .* make a new optimizer"):
        optimizer.step()
    assert changed(model, before) == set()


@pytest.mark.parametrize("data", [np.zeros((5, 3)), np.zeros((5, 4), int), [[0.0] * 4] * 5])
def test_data_that_cannot_be_is_refused(data):
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.1)
    backward(model)
    model[0].weight.data = data
    with pytest.raises(InputError, match=r"0\.weight has data that is .*: expected floats of shape \(5, 4\)"):
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_network_and_optimizer_are_copied_together(rule, how):
    model = network()
    optimizer = RULES[rule](model.parameters(), lr=optim.rates.warmup(optim.rates.cosine(0.1, 9), 2))
    for step in range(2):
        model.zero_grad()
        backward(model, step)
        optimizer.step()
    twin, its = how((model, optimizer))
    assert its.parameters[0] is twin[0].weight
    before = model.state_dict()
    for step in range(2, 4):
        twin.zero_grad()
        backward(twin, step)
        its.step()
    assert changed(model, before) == set()
    for step in range(2, 4):
        model.zero_grad()
        backward(model, step)
        optimizer.step()
    assert all(np.array_equal(a.data, b.data) for a, b in zip(model.parameters(), twin.parameters()))


# -- frozen, unfrozen, added, replaced ------------------------------------------------------------------------------
def test_unfrozen_weights_are_updated_as_if_new():
    model = network()
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    optimizer, before = optim.Adam(model.parameters(), 0.01), model.state_dict()
    for _ in range(2):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    assert changed(model, before) == {"2", "4"}
    for parameter in model[0].parameters():
        parameter.requires_grad = True
    optimizer.zero_grad()
    backward(model)
    optimizer.step()
    assert optimizer.updates_of() == [1, 1, 3, 3, 3, 3]
    step = before["0.weight"] - model[0].weight.data
    np.testing.assert_allclose(step, 0.01 * np.sign(model[0].weight.grad), rtol=1e-3)


def replaced_layer(model):
    model.replace("4", nn.Linear(3, 3))


def added_weight(model):
    model[4].scale = nn.Parameter((3,), nn.initializers.constant(1.0))
    forward = type(model[4]).forward
    model[4].forward = lambda x: forward(model[4], x) * model[4].scale


def assigned_weight(model):
    model[4].weight = nn.Parameter((3, 3), nn.initializers.uniform(0.1))


def unfrozen(model):
    for parameter in model[0].parameters():
        parameter.requires_grad = True


@pytest.mark.parametrize("change", [replaced_layer, added_weight, assigned_weight, unfrozen])
@pytest.mark.parametrize("of_all", [True, False])
def test_weights_that_nobody_would_update_are_refused(change, of_all):
    model = network()
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    own = model[2].parameters() + model[4].parameters() if of_all else model[4].parameters()
    optimizer = optim.SGD(own, 0.1)
    backward(model)
    optimizer.step()
    change(model)
    model.zero_grad()
    backward(model)
    before = model.state_dict()
    with pytest.raises(
        InputError, match=r"has a gradient but is in no optimizer: it was added to the network, or unfro"
    ):
        optimizer.step()
    assert changed(model, before) == set()
    new = [p for p in model.parameters() if not any(p is one for one in own) and p.requires_grad]
    new = [p for p in new if of_all or not p.name.startswith("2.")]
    other = optim.SGD(new, 0.1)
    optimizer.step()
    other.step()
    assert changed(model, before) >= {"4"} if of_all else True


def test_a_layer_before_the_optimizers_network_counts_as_added():
    inner = network()
    optimizer = optim.SGD(inner.parameters(), 0.1)
    whole = nn.Sequential(nn.Linear(4, 4).initialize(1, "float64"), inner)
    whole.initialize(0, "float64")
    backward(whole)
    with pytest.raises(InputError, match=r"0\.weight has a gradient but is in no optimizer"):
        optimizer.step()


@pytest.mark.parametrize("how", ["add_param_group", "deepcopy", "pickle"])
def test_what_was_frozen_is_remembered(how):
    model = network()
    for layer in (0, 2):
        for parameter in model[layer].parameters():
            parameter.requires_grad = False
    optimizer = optim.SGD(model[4].parameters(), 0.1)
    if how != "add_param_group":
        copies = copy.deepcopy if how == "deepcopy" else lambda both: pickle.loads(pickle.dumps(both))
        optimizer, model = copies((optimizer, model))
    for layer in (0, 2):
        for parameter in model[layer].parameters():
            parameter.requires_grad = True
    optimizer.add_param_group({"params": model[2].parameters()})
    backward(model)
    with pytest.raises(InputError, match=r"0\.weight has a gradient but is in no optimizer"):
        optimizer.step()


def test_copies_leave_out_what_was_left_out_on_purpose():
    optimizer, model = copy.deepcopy((lambda m: (optim.SGD(m[4].parameters(), 0.1), m))(network()))
    before = model.state_dict()
    backward(model)
    optimizer.step()
    assert changed(model, before) == {"4"}


def test_an_optimizer_that_is_gone_updates_nothing():
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.1)
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    optimizer = optim.SGD(model[2].parameters() + model[4].parameters(), 0.1)
    unfrozen(model)
    backward(model)
    with pytest.raises(InputError, match=r"0\.weight has a gradient but is in no optimizer"):
        optimizer.step()


def test_a_second_phase_may_train_the_head_alone():
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.1)
    optimizer = optim.SGD(model[4].parameters(), 0.1)
    before = model.state_dict()
    backward(model)
    optimizer.step()
    assert changed(model, before) == {"4"}


def test_a_group_may_be_another_dict():
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    optimizer = optim.SGD(groups, lr=0.2)
    optimizer.param_groups = [dict(group, lr=0.0) for group in optimizer.param_groups]
    before = model.state_dict()
    backward(model)
    optimizer.step()
    assert changed(model, before) == set()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.Adam(p, betas=(0.9,)), r"betas \(0.9,\): must be two numbers"),
        (lambda p: optim.Adam(p, betas=(0.9, 0.9, 0.9)), "betas"),
        (lambda p: optim.SGD(p, lr=True), "lr True: must be a finite number"),
        (lambda p: optim.SGD(p, lr="0.1"), "lr 0.1: must be a finite number"),
        (lambda p: optim.SGD(p, lr=None), "lr None: must be a finite number"),
    ],
)
def test_options_that_are_none(make, message):
    with pytest.raises(InputError, match=message):
        make(network().parameters())


def test_a_rate_of_numpy_is_a_rate():
    models = [network().initialize(0, "float32") for _ in range(2)]
    for model, rate in zip(models, (0.1, np.float64(0.1))):
        optimizer = optim.SGD(model.parameters(), rate)
        random = np.random.default_rng(0)
        nn.cross_entropy(model(random.normal(size=(6, 4)).astype(np.float32)), np.arange(6) % 3).backward()
        optimizer.step()
    assert all(np.array_equal(a.data, b.data) for a, b in zip(*(model.parameters() for model in models)))


def test_gradients_have_the_type_of_weights_that_were_assigned():
    model, plain = network().initialize(0, "float32"), network().initialize(0, "float32")
    optimizer = optim.SGD(model.parameters(), 0.1)
    for one in (model, plain):
        for parameter in one.parameters():
            parameter.data = parameter.data.astype(np.float64)
    reference = optim.SGD(plain.parameters(), 0.1)
    for step in range(2):
        for one, its in ((model, optimizer), (plain, reference)):
            one.zero_grad()
            backward(one, step)
            its.step()
    assert model[0].weight.grad.dtype == np.float64
    for a, b in zip(model.parameters(), plain.parameters()):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-6)


def test_a_part_is_initialized_as_its_network_is():
    model = network().initialize(3, "float64")
    model[2].initialize()
    assert model[2].weight.data.dtype == np.float64
    assert model[2].seed == 3

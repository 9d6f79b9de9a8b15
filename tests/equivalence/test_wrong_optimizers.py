"""assert_equivalent sees a wrong optimizer whatever the network has been through, and no difference in a right one."""

import copy
import pickle

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.equivalence import assert_equivalent
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import Mesh
from parallel_dl.trainer import Trainer

RANDOM = np.random.default_rng(0)
KEPT = []
X, Y = RANDOM.normal(size=(13, 4)), RANDOM.integers(0, 3, 13)


def network():
    layers = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Tanh(), nn.Linear(5, 3)
    return nn.Sequential(*layers).initialize(0, "float64")


def fresh(comm):
    return network()


def had_an_optimizer(comm):
    model = network()
    optimizer = optim.Adam(model.parameters(), 0.1)
    nn.cross_entropy(model(X), Y).backward()
    optimizer.step()
    return model


def has_an_all_reduce(comm):
    """Whose batch norm takes its statistics over the ranks."""
    model = network()
    KEPT[:] = [GradientAllReduce(model.parameters(), comm, method) for method in ("window", "mpi")]
    nn.cross_entropy(model(X), Y).backward()
    KEPT[-1].all_reduce()
    return model


def trained_and_evaluated(comm):
    model = network()
    mesh = Mesh(comm, data=comm.size)
    trainer = Trainer(model, lambda p: optim.SGD(p, 0.1), Layout(dp=comm.size), mesh)
    batch = next(iter(trainer.loader(X, Y, 13, 0).epoch(0)))
    trainer.step(batch)
    return model.eval()


def copied_and_pickled(comm):
    return copy.deepcopy(pickle.loads(pickle.dumps(had_an_optimizer(comm))))


PASTS = [fresh, had_an_optimizer, has_an_all_reduce, trained_and_evaluated, copied_and_pickled]


def half_a_step(rank):
    class Rule(optim.SGD):
        def step(self, scale=1.0):
            super().step(scale * (0.5 if rank else 1.0))

    return lambda p: Rule(p, lr=0.5)


def no_step(rank):
    class Rule(optim.Adam):
        def step(self, scale=1.0):
            if rank == 0:
                super().step(scale)

    return lambda p: Rule(p, lr=0.1)


def another_rate(rank):
    return lambda p: optim.SGD(p, lr=0.1 * (rank + 1))


def another_rate_for_the_head(rank):
    return lambda p: optim.SGD([{"params": p[-2:], "lr": 0.1 * (rank + 1)}, {"params": p[:-2]}], lr=0.1)


def only_the_head(rank):
    return lambda p: optim.SGD(p[-2:] if rank else p, lr=0.1)


@pytest.mark.sampled(2)
@pytest.mark.ranks(2)
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("wrong", [half_a_step, no_step, another_rate, another_rate_for_the_head, only_the_head])
def test_a_wrong_optimizer_is_seen(comm, past, wrong):
    with pytest.raises(AssertionError, match="is not the serial run"):
        assert_equivalent(past(comm), Layout(dp=2), (X, Y), 3, make_optimizer=wrong(comm.rank), comm=comm)


def of_the_head(parameters):
    return optim.SGD(parameters[-2:], lr=0.5, momentum=0.9)


def in_groups(parameters):
    of_biases = [p for p in parameters if p.name.endswith("bias")]
    others = [p for p in parameters if not p.name.endswith("bias")]
    return optim.AdamW([{"params": of_biases, "lr": 0.01, "weight_decay": 0.0}, {"params": others}], lr=0.1)


def in_another_order(parameters):
    return optim.LARS(parameters[::-1], lr=1.0, weight_decay=0.01)


@pytest.mark.sampled(2)
@pytest.mark.ranks(2)
@pytest.mark.parametrize("past", PASTS)
def test_a_right_optimizer_is_not_called_wrong(comm, past):
    for make_optimizer in (of_the_head, in_groups, in_another_order):
        assert_equivalent(past(comm), Layout(dp=2), (X, Y), 3, make_optimizer=make_optimizer, comm=comm)


@pytest.mark.sampled(2)
@pytest.mark.ranks(2, 4)
def test_parts_and_groups_in_other_layouts(comm):
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)]
    layouts = {2: [Layout(mp=2), Layout(pp=2, microbatches=3)], 4: [Layout(dp=2, mp=2), Layout(dp=2, pp=2)]}
    for layout in layouts[comm.size]:
        for make_optimizer in (in_groups, in_another_order):
            model = nn.Sequential(*copy.deepcopy(layers))
            assert_equivalent(model, layout, (X, Y), 3, make_optimizer=make_optimizer, comm=comm)


@pytest.mark.ranks(2)
def test_an_optimizer_of_another_network_is_refused(comm):
    other = network()
    with pytest.raises(
        InputError, match=r"^rank 0: make_optimizer: 0\.weight \(5, 4\) is not one of the parameters it was given"
    ):
        Trainer(network(), lambda p: optim.SGD(other.parameters(), 0.1), Layout(dp=2), Mesh(comm, data=2))
    with pytest.raises(AssertionError, match="is not one of the parameters it was given"):
        assert_equivalent(other, Layout(dp=2), (X, Y), make_optimizer=lambda p: optim.SGD(other[4].parameters(), 0.1))


@pytest.mark.ranks(2)
def test_a_stage_without_the_chosen_parameters_is_refused_on_every_rank(comm):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    mesh = Mesh(comm, pipe=2)
    with pytest.raises(InputError, match=r"^rank 0: make_optimizer: the optimizer got no parameters"):
        Trainer(
            model,
            lambda ps: optim.SGD([p for p in ps if p.name.startswith("2.")], 0.1),
            Layout(pp=2),
            mesh,
            input_shape=(4,),
        )


@pytest.mark.ranks(2)
def test_a_network_that_is_split_already_is_refused(comm):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).initialize(0, "float64")
    parallelize(model, comm, (4,), {"0": "output"})
    with pytest.raises(AssertionError, match="the serial run ends with InputError: this network is split already"):
        assert_equivalent(model, Layout(dp=2), (X, Y), comm=comm)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(mp=2), Layout(pp=2)])
def test_another_rule_or_other_state_on_one_rank(comm, layout):
    """Their state could not be gathered: some ranks would wait for others for ever."""
    rules = [lambda p: optim.SGD(p, 0.1, momentum=0.9), lambda p: optim.SGD(p, 0.1), lambda p: optim.Adam(p, 0.1)]
    for first, other in ((0, 1), (1, 2)):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        with pytest.raises(AssertionError, match="the optimizers differ: that of rank 0 is sgd with state"):
            assert_equivalent(model, layout, (X, Y), 2, make_optimizer=rules[other if comm.rank else first], comm=comm)


@pytest.mark.ranks(2)
def test_a_rule_whose_step_takes_no_scale(comm):
    class Plain(optim.SGD):
        def step(self):
            super().step()

    assert_equivalent(network(), Layout(dp=2), (X, Y), 2, make_optimizer=lambda p: Plain(p, 0.1), comm=comm)

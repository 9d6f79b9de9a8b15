"""Magnitudes and noise are measured on copies, and each tensor at each step is judged against its own noise."""

import dataclasses
import functools
import random

import numpy as np
import pytest
from delicate_setups import SETUPS, Scaled, adam, experiment, mlp, normal, sgd
from serial_runs import serial_run

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment, compare, record, replay
from parallel_dl.equivalence.compare.runs import first_different_step, samples_are_mixed
from parallel_dl.equivalence.rounding.copies import copied
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh


def of(*layers, **others):
    return experiment(lambda: nn.Sequential(nn.Linear(12, 8), *[make() for make in layers], nn.Linear(8, 4)), **others)


# -- the network is run as often as training runs it ---------------------------------------------------------------
class Counting(nn.Module):
    """Scales by how often it was called: an attribute that is a number, and one in a list."""

    def __init__(self):
        super().__init__()
        self.calls, self.kept = 0, []

    def forward(self, x):
        self.calls += 1
        self.kept.append(self.calls)
        return x * (1 / len(self.kept))


class Average(nn.Module):
    """Divides by a moving average of its input, a buffer, which another layer shares."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", np.ones(()))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * float(np.abs(x.data).mean())
        return x * (1 / float(self.mean))


class WithFile(nn.Module):
    """Keeps what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.numbers, self.generator = iter(lambda: 1.0, None), (n for n in range(3))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 / self.calls)


class Norm(nn.BatchNorm1d):
    def __init__(self):
        super().__init__(8)


def hooked():
    """Its hook has a generator of its own."""
    generator, layer = np.random.default_rng(1), nn.ReLU()
    layer.register_forward_hook(lambda layer, arguments, y: y * float(generator.uniform(0.5, 1.5)))
    return layer


class HookOfAMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_forward_hook(self.count)

    def forward(self, x):
        return x

    def count(self, layer, arguments, y):
        self.calls += 1
        return y * (1 / self.calls)


class Global(nn.Module):
    """Draws from NumPy's and Python's own generators, from which a training may draw."""

    def forward(self, x):
        return x * float(np.random.uniform(0.5, 1.5)) * random.uniform(0.5, 1.5)


def same(ours, theirs):
    assert ours.losses == theirs.losses
    for kind in ("gradients", "state", "weights"):
        for own, other in zip(getattr(ours, kind), getattr(theirs, kind), strict=True):
            assert own.keys() == other.keys()
            assert all(np.array_equal(own[name], other[name], equal_nan=True) for name in own)


STATES = [Scaled, Counting, Average, WithFile, Norm, hooked, HookOfAMethod]


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("make", STATES, ids=lambda make: make.__name__)
def test_a_measured_run_is_the_run(make, microbatches):
    what = of(make, batch=6, steps=3)
    layout = Layout(microbatches=microbatches)
    measured = record(what, layout)
    same(measured, record(what, layout, Mesh.serial()))
    assert measured.repeats
    assert compare(measured, record(what, layout, Mesh.serial())).worst.error == 0


@pytest.mark.parametrize("make", [Scaled, Counting, WithFile, hooked, HookOfAMethod], ids=lambda make: make.__name__)
def test_each_sample_sees_the_state_that_its_microbatch_saw(make):
    """So the sums of the samples are the gradients, and their magnitudes bound them."""
    what = of(make, batch=6, steps=3)
    run = record(what, Layout(microbatches=2))
    by_samples = replay(what, 2)
    assert compare(dataclasses.replace(run, outcome=None), by_samples).worst.error < 1e-13
    assert samples_are_mixed(run, by_samples) is None
    for gradients, magnitudes in zip(run.gradients, run.magnitudes, strict=True):
        for name, gradient in gradients.items():
            assert (np.abs(gradient) <= magnitudes["gradients"][name] * (1 + 1e-12)).all()


def test_generators_of_the_process_are_as_after_the_run_itself():
    what = of(Global, batch=6, steps=2)
    after = []
    for arguments in ((Layout(), Mesh.serial()), ()):
        np.random.seed(3)
        random.seed(3)
        run = record(what, *arguments)
        after.append(run.losses)
    assert after[0] == after[1]
    assert not run.repeats
    assert "differs each time" in compare(run, run).message


def test_copies_of_a_network_keep_sharing():
    first, second, norm = Average(), Average(), Norm()
    second.register_buffer("other", np.zeros(2))
    network = nn.Sequential(nn.Linear(8, 8), norm, first, norm, second).initialize(0, "float64")
    network[4].mean = network[2].mean
    network[4]._buffers["mean"] = network[2]._buffers["mean"]
    copy, _ = copied(network, None)
    assert copy[1] is copy[3]
    assert copy[4]._buffers["mean"] is copy[2]._buffers["mean"]
    assert copy[1].running_mean is copy[1]._buffers["running_mean"]
    assert not np.shares_memory(copy[1].running_mean, network[1].running_mean)
    assert not np.shares_memory(copy[0].weight.data, network[0].weight.data)


WEIGHTS = {}


def size_of_a_global(*arguments):
    return float(np.abs(WEIGHTS["network"].weight.data).sum())


def through_another(*arguments):
    return size_of_a_global() * 1.0


class OfAGlobal:
    def __call__(self, *arguments):
        return size_of_a_global()

    def method(self, *arguments):
        return size_of_a_global()


@pytest.mark.parametrize(
    "loss",
    [
        size_of_a_global,
        through_another,
        lambda *arguments: next(size_of_a_global() for _ in range(1)),
        OfAGlobal(),
        OfAGlobal().method,
        functools.partial(size_of_a_global, 1),
    ],
)
def test_a_loss_that_reaches_the_network_through_a_global_reaches_the_copy(loss):
    network = WEIGHTS["network"] = nn.Linear(2, 2).initialize(0, "float64")
    before = loss(None, None, 1)
    its, its_loss = copied(*copied(network, loss))
    its.weight.data[...] = 0
    assert its_loss(None, None, 1) == 0
    assert loss(None, None, 1) == before > 0
    assert WEIGHTS["network"] is network


def test_a_loss_of_another_network_stays_as_it_is():
    WEIGHTS["network"] = nn.Linear(2, 2)
    assert copied(nn.Linear(2, 2), size_of_a_global)[1] is size_of_a_global


# -- magnitudes ----------------------------------------------------------------------------------------------------
def test_both_terms_of_a_saturated_softmax_count():
    what = SETUPS["saturated_softmax"][0]()
    run = record(what)
    last = run.magnitudes[-1]["gradients"]["6.bias"]
    assert np.abs(run.gradients[-1]["6.bias"]).max() < 1e-4
    assert last[0] > 0.5, "one-hot and softmax, each nearly 1 in the mean"
    assert run.magnitudes[-1]["losses"][""][0] > 1


def test_scores_that_do_not_fit_have_no_further_terms():
    what = experiment(mlp, batch=4, steps=1)
    trained = record(what)
    assert (trained.magnitudes[0]["gradients"]["6.bias"] < 1.01).all()


def test_a_loss_that_refuses_zeros_has_no_term_of_them():
    def positive(scores, targets, total):
        if not scores.data.any():
            raise ValueError("no zeros")
        return nn.cross_entropy(scores, targets, total)

    same(record(experiment(mlp, loss=positive)), record(experiment(mlp)))


# -- noise ---------------------------------------------------------------------------------------------------------
def moved(run, step, factor, name="6.weight"):
    """The run with other weights from a step on."""
    weights = [
        {**arrays, name: arrays[name] * factor} if number >= step else arrays
        for number, arrays in enumerate(run.weights)
    ]
    return dataclasses.replace(run, weights=weights, magnitudes=None, noise=None)


def test_a_bug_before_rounding_has_grown_counts():
    what = SETUPS["chaos_with_momentum"][0]()
    run = record(what)
    same_run = dataclasses.replace(run, magnitudes=None)
    comparison = compare(run, same_run)
    assert comparison.equal
    assert 10 < comparison.void_from < 29
    assert "is chaos, not a bug" in comparison.message
    assert "grows by a factor of" in comparison.message
    name = "8.weight"
    assert compare(run, moved(run, comparison.void_from, 2, name)).equal, "nothing can be told there"
    for step in (0, 5, comparison.void_from - 8):
        wrong = moved(run, step, 1 + 1e-3, name)
        assert not compare(run, wrong).equal
        assert first_different_step(run, wrong) == step
    assert samples_are_mixed(run, replay(what)) is None


def test_a_step_before_the_noise_has_the_usual_bound():
    run = record(experiment(mlp, 1e3 * normal(32, 12), make=sgd(1e-4)))
    assert not compare(run, moved(run, 4, 1 + 1e-8)).equal
    assert compare(run, moved(run, 4, 1 + 1e-13)).equal


def test_a_noisy_tensor_lends_its_noise_to_no_other():
    run = record(SETUPS["the_same_with_a_tiny_eps"][0]())
    mean = "weight of norm1.running_mean"
    assert run.noise[0][mean] < 1e-13 < 1e-4 < run.noise[1][mean]
    assert not compare(run, moved(run, 0, 1 + 1e-8, "norm1.running_mean")).equal
    assert not compare(run, moved(run, 4, 1 + 1e-8, "fc.weight")).equal
    assert mean in compare(run, run).note


def test_a_run_that_rounding_alone_makes_another_proves_nothing():
    run = record(experiment(mlp))
    noise = [dict.fromkeys(of_step, 1e-3) for of_step in run.noise]
    comparison = compare(dataclasses.replace(run, noise=noise), run)
    assert not comparison.equal
    assert "steps 0 to 4 are not compared: rounding alone moves the serial run by 1e-03" in comparison.message


def test_a_loss_that_is_no_number_proves_nothing():
    run = record(experiment(mlp))
    nan = dataclasses.replace(run, losses=[float("nan")] * 5)
    assert not compare(nan, nan).equal
    late = dataclasses.replace(run, losses=[*run.losses[:3], float("nan"), float("nan")])
    comparison = compare(late, late)
    assert comparison.equal
    assert "steps 3 to 4 are not compared: the serial run itself is not finite" in comparison.message
    assert not compare(late, dataclasses.replace(late, losses=[2.0, *late.losses[1:]])).equal


@pytest.mark.ranks(2)
@pytest.mark.parametrize("seed", [2, 20])
def test_chaos_that_two_runs_hardly_show_is_not_called_different(comm, seed):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(13, 4)).astype("float32"), random.integers(0, 3, 13)

    def build():
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    what = Experiment(build, x, y, lambda parameters: optim.SGD(parameters, lr=20.0), 13, 30, seed, "float32")
    serial = serial_run(comm, what)
    parallel = record(what, Layout(dp=2), Mesh(comm, data=2))
    comparison = compare(serial, parallel)
    assert comparison.equal, comparison.message
    assert "not compared" in comparison.message


def with_batch_norm(seed, make):
    """Two batch norm layers: in microbatches of two samples the terms of their gradients nearly cancel."""
    random = np.random.default_rng(seed)

    def build():
        layers = [layer for before in (4, 8) for layer in (nn.Linear(before, 8), nn.BatchNorm1d(8), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(8, 3))

    x, y = random.normal(size=(13, 4)), random.integers(0, 3, 13)
    return Experiment(build, x, y, make, 13, 5, seed)


@pytest.mark.parametrize(("seed", "make"), [(10, sgd(0.1)), (5, adam())])
def test_batch_norm_over_two_samples_is_the_sum_of_its_samples(seed, make):
    what = with_batch_norm(seed, make)
    run = record(what, Layout(microbatches=6))
    assert samples_are_mixed(run, replay(what, 6)) is None


@pytest.mark.parametrize(("seed", "make"), [(10, sgd(0.1)), (5, adam())])
def test_a_loss_that_divides_by_its_microbatch_is_caught_despite_batch_norm(seed, make):
    what = with_batch_norm(seed, make)
    what.loss = lambda scores, targets, total: nn.cross_entropy(scores, targets, len(targets))
    found = samples_are_mixed(record(what, Layout(microbatches=6)), replay(what, 6))
    assert found is not None
    assert found.error > 1e-3


def test_the_terms_of_a_normalisation_over_two_samples_round_by_themselves():
    """The terms of the gradient nearly cancel, so no change of what the layer receives reaches it."""
    what = of(nn.Tanh, steps=1, batch=12)
    what.build = lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
    run = record(what, Layout(microbatches=6))
    assert run.noise[0]["gradient of 0.weight"] > 2e-15


# -- infinities ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ours", "theirs", "equal"),
    [
        ([-np.inf, 1], [-np.inf, 1], True),
        ([np.inf, np.nan], [np.inf, np.nan], True),
        ([-np.inf, 1], [np.inf, 1], False),
        ([-np.inf, 1], [0, 1], False),
        ([-np.inf, 1], [-np.inf, 1 + 1e-6], False),
        ([np.nan, 1], [1, 1], False),
    ],
)
def test_equal_infinities_are_equal(ours, theirs, equal):
    run = record(experiment(mlp))
    ours, theirs = (np.array(values, float) for values in (ours, theirs))
    with_ours, with_theirs = (
        dataclasses.replace(run, weights=[{**arrays, "buffer": values} for arrays in run.weights])
        for values in (ours, theirs)
    )
    for magnitudes in run.magnitudes:
        magnitudes["weights"]["buffer"] = np.abs(ours)
    with np.errstate(all="raise"):
        assert compare(with_ours, with_theirs).equal is equal


def test_samples_are_mixed_only_where_they_are():
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(axis=0, keepdims=True)

    what = of(Centred, steps=2)
    found = samples_are_mixed(record(what), replay(what))
    assert found is not None
    assert found.error > 1e-3
    for name in ("convolution_then_batch_norm_under_adam", "batch_norm_of_a_large_mean", "the_same_with_a_tiny_eps"):
        what = SETUPS[name][0]()
        assert samples_are_mixed(record(what), replay(what)) is None

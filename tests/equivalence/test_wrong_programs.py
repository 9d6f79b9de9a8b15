"""Wrong programs of users: assert_equivalent catches and names each; right ones that look alike, it accepts.

Each is a function of the rank that gives what assert_equivalent is called with, beside a small network and its batch.
"""

import os

import numpy as np
import pytest
from mpi4py import MPI

from parallel_dl import nn, optim
from parallel_dl.autograd import Tensor, ops, primitive
from parallel_dl.equivalence import assert_equivalent
from parallel_dl.layout import Layout
from parallel_dl.mpi import world

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(13, 4)), RANDOM.integers(0, 3, 13)
DATA, STAGES, CUT_STAGES = Layout(dp=2), Layout(pp=2), Layout(pp=2, microbatches=2)
KEPT_WORLD = MPI.COMM_WORLD


class Layer(nn.Module):
    """Of a function of itself and x; what it gives has the shape of x."""

    def __init__(self, function, **attributes):
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)

    def output_shape(self, input_shape):
        return input_shape


def among(function, *, batch_norm=False, **attributes):
    """A network with this layer in the middle."""

    def build():
        norm = [nn.BatchNorm1d(5)] if batch_norm else []
        return nn.Sequential(nn.Linear(4, 5), *norm, Layer(function, **attributes), nn.Tanh(), nn.Linear(5, 3))

    return build


def plain():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def values_of(x):
    return x.data if isinstance(x, Tensor) else x


# -- it asks for the other ranks ---------------------------------------------------------------------------------------
def mean_over_all_ranks(layer, x):
    return x * (1 / world().size)


def doubled_among_others(layer, x):
    return x * 2 if KEPT_WORLD.size > 1 else x


def by_a_kept_communicator(layer, x):
    return x * float(layer.comm.size)


def by_the_launcher(layer, x):
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    return x * float(next(os.environ[name] for name in names if name in os.environ))


def seeded_by_rank(layer, x):
    return x * np.random.default_rng(world().rank).random()


def forgotten_reduction(layer, x):
    """The mean over all ranks' samples is meant: each has summed its own."""
    return x - x.sum(axis=0, keepdims=True) * (1 / 13)


def bias_on_every_rank(layer, x):
    """A sum over ranks that adds what each of them has in full."""

    def forward(a):
        return world().all_reduce(a[:1]) * 0 + a + world().size, (lambda g: g,)

    return primitive(forward)(x) if world().size > 1 else x + 1.0


# -- it looks at which samples it is given -----------------------------------------------------------------------------
def centred(layer, x):
    return x - x.mean(axis=0, keepdims=True)


def noise_by_place(layer, x):
    return x * np.random.default_rng(1).random(x.shape) if layer.training else x


def first_sample_apart(layer, x):
    return x * np.where(np.arange(len(x)) == 0, 2.0, 1.0)[:, None]


def small_batches_apart(layer, x):
    return x * 0.5 if len(x) < 8 else x


def unsynchronised_buffer(layer, x):
    if layer.training:
        layer.seen[...] = 0.9 * layer.seen + 0.1 * values_of(x).mean()
    return x


def by_the_number_of_calls(layer, x):
    layer.seen[...] += layer.training
    return x * (1 / (1 + float(layer.seen)))


def with_a_buffer(function=unsynchronised_buffer):
    network = among(function)()
    network[1].register_buffer("seen", np.zeros(()))
    return network


# -- wrong in evaluation only ------------------------------------------------------------------------------------------
def centred_in_evaluation(layer, x):
    return x if layer.training else centred(layer, x)


def half_in_evaluation(layer, x):
    return x if layer.training or world().size == 1 else x * 0.5


def average_in_an_attribute(layer, x):
    if layer.training:
        layer.seen = 0.9 * layer.seen + 0.1 * float(values_of(x).mean())
        return x
    return x - layer.seen


# -- it begins late ----------------------------------------------------------------------------------------------------
def from_the_sixth_pass(layer, x):
    layer.passes += layer.training
    return x * 2.0 if layer.passes >= 6 and world().size > 1 else x


class LateOnOneRank(optim.SGD):
    def step(self, scale=1.0):
        super().step(scale * (0.5 if self.updates >= 6 and world().rank else 1.0))


# -- state that is not the sample's ------------------------------------------------------------------------------------
def stale_cache(layer, x):
    """Keeps the scale that the first samples had."""
    if layer.scale is None:
        layer.scale = float(np.abs(values_of(x)).max())
    return x * (1 / layer.scale)


def changes_its_input(layer, x):
    a = values_of(x)
    if world().rank:
        a *= 1.001
    return x


def narrowed_on_one_rank(layer, x):
    return primitive(lambda a: (a.astype(np.float32).astype(a.dtype), (lambda g: g,)))(x) if world().rank else x


# -- losses, data, optimizers ------------------------------------------------------------------------------------------
def mean_of_what_it_is_given(scores, targets, total):
    return nn.cross_entropy(scores, targets, len(targets))


def class_weights_of_what_it_is_given(scores, targets, total):
    weights = (1.0 + np.asarray(targets))[:, None]
    weighted = scores * weights * (len(targets) / weights.sum())
    return nn.cross_entropy(weighted, targets, total)


def shuffled_by_rank(rank):
    order = np.random.default_rng(rank).permutation(13)
    return X[order], Y[order]


def other_labels(rank):
    return X, np.roll(Y, rank)


def loses_updates(rank):
    class Skips(optim.Adam):
        def step(self, scale=1.0):
            if not rank or self.updates != 2:
                super().step(scale)

    return lambda p: Skips(p, 0.01)


class Sign(optim.Optimizer):
    """A rule of the user's own: by the sign of the momentum."""

    rule = "sign"

    def __init__(self, parameters, lr=0.01, wrong=False):
        super().__init__(parameters, lr)
        self.wrong = wrong

    def state_of(self, options):
        return ("momentum",)

    def _update(self, options, rate, updates, weights, gradient, momentum):
        momentum *= 0.9
        momentum += 0.1 * gradient
        weights -= rate * momentum / (np.abs(momentum) + 0.1)
        if self.wrong and world().rank:
            weights += 1e-3 * rate


def penalised(of_each_stage):
    """Network and loss: the squares of weights are added to the loss, a share's part of them by its samples."""
    kept = {}

    def build():
        kept["network"] = plain()
        return kept["network"]

    def loss(scores, targets, total):
        layers = kept["network"].parameters() if of_each_stage else [kept["network"][0].weight]
        squares = [ops.sum(ops.power(one, 2)) for one in layers]
        return nn.cross_entropy(scores, targets, total) + sum(squares[1:], squares[0]) * (0.01 * len(targets) / total)

    return {"network": build, "loss": loss}


def reached_globally():
    """Its network is a global variable, as in a script."""
    global NETWORK
    NETWORK = plain()
    return NETWORK


def squares_of_weights():
    squares = [ops.sum(ops.power(one, 2)) for one in NETWORK.parameters()]
    return sum(squares[1:], squares[0])


def penalised_by_samples(scores, targets, total):
    return nn.cross_entropy(scores, targets, total) + squares_of_weights() * (0.01 * len(targets) / total)


def penalised_by_calls(scores, targets, total):
    return nn.cross_entropy(scores, targets, total) + squares_of_weights() * 0.01


WRONG = {
    "divided by the ranks": lambda rank: {"network": among(mean_over_all_ranks)},
    "doubled among others": lambda rank: {"network": among(doubled_among_others)},
    "by a communicator in the layer": lambda rank: {"network": among(by_a_kept_communicator, comm=world())},
    "by the launcher's variables": lambda rank: {"network": among(by_the_launcher)},
    "seeded by rank": lambda rank: {"network": among(seeded_by_rank)},
    "a forgotten reduction": lambda rank: {"network": among(forgotten_reduction)},
    "a bias on every rank": lambda rank: {"network": among(bias_on_every_rank)},
    "the mean of the samples": lambda rank: {"network": among(centred)},
    "the mean of the samples, in stages": lambda rank: {"network": among(centred), "layout": CUT_STAGES},
    "noise by place": lambda rank: {"network": among(noise_by_place)},
    "noise by place, in stages": lambda rank: {"network": among(noise_by_place), "layout": CUT_STAGES},
    "noise by place, beside batch norm": lambda rank: {
        "network": among(noise_by_place, batch_norm=True),
        "layout": CUT_STAGES,
    },
    "the first sample": lambda rank: {"network": among(first_sample_apart), "layout": CUT_STAGES},
    "small batches": lambda rank: {"network": among(small_batches_apart)},
    "a buffer of each rank": lambda rank: {"network": with_a_buffer},
    "a count of calls that is read": lambda rank: {
        "network": lambda: with_a_buffer(by_the_number_of_calls),
        "layout": CUT_STAGES,
    },
    "evaluation: the mean of the samples": lambda rank: {"network": among(centred_in_evaluation)},
    "evaluation: the mean, in stages": lambda rank: {"network": among(centred_in_evaluation), "layout": CUT_STAGES},
    "evaluation: a factor": lambda rank: {"network": among(half_in_evaluation), "layout": STAGES},
    "evaluation: an average in an attribute": lambda rank: {"network": among(average_in_an_attribute, seen=0.0)},
    "from the sixth pass": lambda rank: {"network": among(from_the_sixth_pass, passes=0)},
    "a late half update": lambda rank: {"make_optimizer": lambda p: LateOnOneRank(p, 0.1)},
    "a late rate": lambda rank: {
        "make_optimizer": lambda p: optim.SGD(p, lambda update: 0.1 / (1 + rank * (update >= 6)))
    },
    "a stale cache": lambda rank: {"network": among(stale_cache, scale=None)},
    "a changed input": lambda rank: {"network": among(changes_its_input)},
    "another type on one rank": lambda rank: {"network": among(narrowed_on_one_rank)},
    "the mean of a share": lambda rank: {"loss": mean_of_what_it_is_given},
    "the mean of a microbatch": lambda rank: {"loss": mean_of_what_it_is_given, "layout": CUT_STAGES},
    "the mean of a microbatch, with batch norm": lambda rank: {
        "network": among(lambda layer, x: x, batch_norm=True),
        "loss": mean_of_what_it_is_given,
        "layout": CUT_STAGES,
    },
    "the mean of a microbatch, float32": lambda rank: {
        "loss": mean_of_what_it_is_given,
        "layout": CUT_STAGES,
        "dtype": "float32",
    },
    "class weights of a microbatch": lambda rank: {"loss": class_weights_of_what_it_is_given, "layout": CUT_STAGES},
    "samples shuffled by rank": lambda rank: {"batch": shuffled_by_rank(rank)},
    "other labels": lambda rank: {"batch": other_labels(rank)},
    "a lost update": lambda rank: {"make_optimizer": loses_updates(rank)},
    "a rule of your own": lambda rank: {"make_optimizer": lambda p: Sign(p, wrong=True)},
    "a penalty in another stage": lambda rank: {**penalised(False), "layout": CUT_STAGES},
    "a penalty in every call": lambda rank: {"network": reached_globally, "loss": penalised_by_calls},
    "a penalty in every call, in microbatches": lambda rank: {
        "network": reached_globally,
        "loss": penalised_by_calls,
        "layout": CUT_STAGES,
    },
    "a late rate, with a penalty": lambda rank: {
        **penalised(True),
        "make_optimizer": lambda p: optim.SGD(p, lambda update: 0.1 / (1 + rank * (update >= 6))),
    },
}
QUICK_RIGHT = [
    "a rule of your own",
    "noise by sample, in stages",
    "a penalty on all weights",
    "a penalty on a global network",
    "large waves",
    "variable batch, a rate that changes",
]
QUICK = [
    "a penalty in another stage",
    "divided by the ranks",
    "noise by place, beside batch norm",
    "evaluation: an average in an attribute",
]


def called(comm, program):
    given = {"network": plain, "layout": DATA, "batch": (X, Y), **program(comm.rank)}
    assert_equivalent(**given, comm=comm)


def in_the_grid_but(quick, names):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.grid) for name in names]


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", in_the_grid_but(QUICK, WRONG))
def test_a_wrong_program_is_seen(comm, name):
    with pytest.raises(AssertionError, match="is not the serial run"):
        called(comm, WRONG[name])


# -- right ones --------------------------------------------------------------------------------------------------------
def counts_its_passes(layer, x):
    layer.passes += 1
    return x * 2.0


def noise_by_sample(layer, x):
    """Of the sample's number in the batch, as nn.Dropout's."""
    first = layer.position.first_sample
    return x * (1 + 0.1 * np.sin(np.arange(first, first + len(x)))[:, None]) if layer.training else x


def knows_the_ranks(layer, x):
    """Divides by their number, and sums over them what is the same on each."""
    return x * float(world().all_reduce(np.array([1.0 / world().size]))[0])


def for_training_only(layer, x):
    if not layer.training:
        raise NotImplementedError("this layer is for training")
    return x


def sum_of_squares(scores, targets, total):
    return nn.mse(scores, np.eye(3)[targets], total)


class Waves(Layer):
    """Of a large input, without weights: cos(x w), for a network that begins with it."""

    def __init__(self, scale):
        super().__init__(lambda layer, x: Tensor(np.cos(values_of(x) @ layer.w * scale)))
        self.w = np.random.default_rng(2).standard_normal((4, 4))


class Distances(Layer):
    """To four points, which are its weights: |x|^2 - 2 x.c + |c|^2, of terms that cancel."""

    def __init__(self):
        super().__init__(lambda layer, x: Tensor(layer.squares(values_of(x))))
        self.points = 1e4 + np.random.default_rng(2).standard_normal((4, 4))

    def squares(self, x):
        return (x**2).sum(1)[:, None] - 2 * x @ self.points.T + (self.points**2).sum(1)


class WithoutAClass(Layer):
    """The score of the first class is minus infinity."""

    def __init__(self):
        super().__init__(lambda layer, x: x + np.array([-np.inf, 0.0, 0.0]))


def begins_with(layer):
    return lambda: nn.Sequential(layer(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def bias_before_batch_norm():
    """Its gradient is zero in theory, and its sign is rounding."""
    return nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1), nn.Tanh(), nn.Linear(1, 3))


def frozen(layer):
    for parameter in layer.parameters():
        parameter.requires_grad = False
    return layer


def images():
    return nn.Sequential(
        conv=nn.Conv2d(1, 2, 3, padding=1), act=nn.Tanh(), flatten=nn.Flatten(), fc=nn.Linear(2 * 4, 3)
    )


RIGHT = {
    "a rule of your own": lambda rank: {"make_optimizer": Sign},
    "a rule of your own, in stages": lambda rank: {"make_optimizer": Sign, "layout": CUT_STAGES},
    "a rule of your own, float32": lambda rank: {"make_optimizer": Sign, "dtype": "float32"},
    "a rule of your own, clipped": lambda rank: {"make_optimizer": Sign, "clip_norm": 0.1},
    "a count of passes": lambda rank: {"network": among(counts_its_passes, passes=0), "layout": CUT_STAGES},
    "noise by sample": lambda rank: {"network": among(noise_by_sample)},
    "noise by sample, in stages": lambda rank: {"network": among(noise_by_sample), "layout": CUT_STAGES},
    "a layer that knows the ranks": lambda rank: {"network": among(knows_the_ranks)},
    "squares": lambda rank: {"loss": sum_of_squares, "layout": Layout(dp=2, microbatches=3)},
    "clipped": lambda rank: {"clip_norm": 0.1, "layout": CUT_STAGES},
    "batch norm": lambda rank: {"network": among(lambda layer, x: x, batch_norm=True), "layout": CUT_STAGES},
    "batch norm, Adam": lambda rank: {
        "network": among(lambda layer, x: x, batch_norm=True),
        "make_optimizer": lambda p: optim.Adam(p, 0.01),
    },
    "float32": lambda rank: {"dtype": "float32", "layout": CUT_STAGES},
    "one of the ranks' shares is empty": lambda rank: {"batch": (X[:1], Y[:1])},
    "split": lambda rank: {"layout": Layout(mp=2, microbatches=2)},
    "the mean of the whole batch": lambda rank: {"network": among(centred), "layout": STAGES},
    "a penalty on all weights": lambda rank: penalised(True),
    "a penalty on all weights, in microbatches": lambda rank: {
        **penalised(True),
        "layout": Layout(dp=2, microbatches=2),
    },
    "a penalty on a global network": lambda rank: {
        "network": reached_globally,
        "loss": penalised_by_samples,
        "layout": Layout(dp=2, microbatches=2),
    },
    "large waves": lambda rank: {"network": begins_with(lambda: Waves(1e6))},
    "large waves, in microbatches": lambda rank: {
        "network": begins_with(lambda: Waves(1e6)),
        "layout": Layout(dp=2, microbatches=3),
    },
    "distances": lambda rank: {"network": begins_with(Distances), "batch": (1e4 + X, Y)},
    "a masked class": lambda rank: {
        "network": lambda: nn.Sequential(nn.Linear(4, 3), WithoutAClass()),
        "batch": (X, np.maximum(Y, 1)),
    },
    "a gradient of zero, signs": lambda rank: {"network": bias_before_batch_norm, "make_optimizer": Sign, "seed": 1},
    "a gradient of zero, Adam": lambda rank: {
        "network": bias_before_batch_norm,
        "make_optimizer": lambda p: optim.Adam(p, 0.01, eps=1e-30),
        "seed": 1,
    },
    "tiny losses": lambda rank: {"loss": lambda y, z, total: nn.cross_entropy(y, z, total) * 1e-305},
    "frozen, Adam": lambda rank: {
        "network": lambda: nn.Sequential(frozen(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)),
        "make_optimizer": lambda p: optim.Adam(p, 0.01, eps=1e-30),
    },
    "weight stashing": lambda rank: {"layout": Layout(pp=2, microbatches=2, schedule="pipedream")},
    "weight stashing, a rate that changes": lambda rank: {
        "layout": Layout(pp=2, microbatches=2, schedule="pipedream"),
        "make_optimizer": lambda p: optim.SGD(p, optim.rates.step(0.1, every=3), momentum=0.9),
    },
    "weight stashing, a rule of your own": lambda rank: {
        "layout": Layout(pp=2, microbatches=2, schedule="pipedream"),
        "make_optimizer": Sign,
    },
    "variable batch, a rule of your own": lambda rank: {
        "network": images,
        "batch": (X.reshape(13, 1, 2, 2), Y),
        "layout": Layout(dp=2, hybrid="owt", scheme="c", variable_batch=True),
        "make_optimizer": Sign,
    },
    "local batch norm, a rule of your own": lambda rank: {
        "network": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, statistics="local"), nn.Linear(5, 3)),
        "make_optimizer": Sign,
    },
    "variable batch": lambda rank: {
        "network": images,
        "batch": (X.reshape(13, 1, 2, 2), Y),
        "layout": Layout(dp=2, hybrid="owt", scheme="b", variable_batch=True),
    },
    "variable batch, a rate that changes": lambda rank: {
        "network": images,
        "batch": (X.reshape(13, 1, 2, 2), Y),
        "layout": Layout(dp=2, hybrid="owt", scheme="c", variable_batch=True),
        "make_optimizer": lambda p: optim.SGD(p, optim.rates.warmup(optim.rates.step(0.1, every=3), 2), momentum=0.9),
    },
    "variable batch, a rate of each group": lambda rank: {
        "network": images,
        "batch": (X.reshape(13, 1, 2, 2), Y),
        "layout": Layout(dp=2, hybrid="owt", scheme="b", variable_batch=True),
        "make_optimizer": lambda p: optim.Adam(
            [{"params": p[:1], "lr": optim.rates.cosine(0.1, 6)}, {"params": p[1:], "lr": 0.01}],
            optim.rates.constant(0.1),
        ),
    },
    "local batch norm": lambda rank: {
        "network": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, statistics="local"), nn.Linear(5, 3))
    },
    "the mean of the whole batch's loss": lambda rank: {"loss": mean_of_what_it_is_given, "layout": STAGES},
}


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", in_the_grid_but(QUICK_RIGHT, RIGHT))
def test_a_right_program_is_not_called_wrong(comm, name):
    called(comm, RIGHT[name])


@pytest.mark.ranks(2)
@pytest.mark.grid
@pytest.mark.parametrize("layout", [DATA, CUT_STAGES])
def test_a_layer_without_evaluation_is_said(comm, layout):
    program = {"network": among(for_training_only), "layout": layout, "steps": 1}
    if comm.rank:
        called(comm, lambda rank: program)
        return
    with pytest.warns(UserWarning, match="evaluation mode is not compared: the serial run ends with NotImplemented"):
        called(comm, lambda rank: program)


class Unsaid(optim.Optimizer):
    """Keeps its state by parameter, under names that a copy does not have."""

    rule = "unsaid"

    def __init__(self, parameters):
        super().__init__(parameters, 0.1)
        self.kept = {id(parameter): 0.0 for parameter in self.parameters}

    def step(self, scale=1.0):
        for parameter in self.parameters:
            self.kept[id(parameter)] += 1.0
            parameter.data -= 0.1 * scale * parameter.grad


@pytest.mark.ranks(2)
def test_a_rule_that_cannot_be_measured_is_told_what_it_needs(comm):
    with pytest.raises(AssertionError, match=r"Unsaid: rounding is measured on copies, .* state_of names"):
        called(comm, lambda rank: {"make_optimizer": Unsaid})

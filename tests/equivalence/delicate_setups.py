"""Training that is right and yet hard to compare: terms that cancel, values that saturate, rounding that grows.

Each is a function without arguments that gives an `Experiment`; LAYOUTS has those that it can be run under.
"""

import numpy as np

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment
from parallel_dl.layout import Layout

SETUPS = {}  # name -> (function that gives the experiment, layouts by number of ranks)

DATA = {2: [Layout(dp=2)], 4: [Layout(dp=4)]}
DEEP = {  # for networks of which stages can be made
    2: [Layout(dp=2), Layout(mp=2), Layout(pp=2, microbatches=2)],
    4: [Layout(dp=4), Layout(dp=2, mp=2), Layout(dp=2, pp=2, microbatches=2)],
}
ALIKE = {"a": "output", "b": "output"}
TIED = {2: [Layout(dp=2), Layout(mp=2, split=ALIKE)], 4: [Layout(dp=4), Layout(dp=2, mp=2, split=ALIKE)]}
SPLIT = {2: [Layout(dp=2), Layout(mp=2)], 4: [Layout(dp=4), Layout(dp=2, mp=2)]}


def setup(layouts):
    def add(function):
        SETUPS[function.__name__] = function, layouts
        return function

    return add


def sgd(rate=0.05, momentum=0.9, decay=0.0):
    return lambda parameters: optim.SGD(parameters, rate, momentum=momentum, weight_decay=decay)


def adam(rate=1e-2, eps=1e-8):
    return lambda parameters: optim.Adam(parameters, rate, eps=eps)


def experiment(build, x=None, y=None, make=None, batch=13, steps=5, dtype="float64", shape=(12,), **others):
    random = np.random.default_rng(5)
    x = random.standard_normal((32, *shape)) if x is None else x
    y = random.integers(0, 4, len(x)) if y is None else y
    y = y.astype(dtype) if y.dtype.kind == "f" else y
    return Experiment(build, x.astype(dtype), y, make or sgd(), batch, steps, 3, dtype, **others)


def normal(*shape, seed=7):
    return np.random.default_rng(seed).standard_normal(shape)


def mlp(activation=nn.ReLU, depth=3, width=10, norm=None, features=12, classes=4):
    layers, before = [], features
    for _ in range(depth):
        layers += [nn.Linear(before, width), *([] if norm is None else [norm(width)]), activation()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes))


def images(norm=nn.BatchNorm2d, pool=nn.MaxPool2d, activation=nn.ReLU, padding=1):
    side = (6 + 2 * padding - 2) // 2
    return nn.Sequential(
        conv1=nn.Conv2d(2, 4, 3, padding=padding),
        **({} if norm is None else {"norm1": norm(4)}),
        act1=activation(),
        pool1=pool(2),
        conv2=nn.Conv2d(4, 4, 3, padding=1),
        **({} if norm is None else {"norm2": norm(4)}),
        act2=activation(),
        flatten=nn.Flatten(),
        fc=nn.Linear(4 * side * side, 4),
    )


def of_images(build=images, x=None, **others):
    return experiment(build, normal(32, 2, 6, 6) if x is None else x, **others)


class Scaled(nn.Module):
    """x times a number that one generator of the layer's own gives for each call."""

    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(3)

    def forward(self, x):
        return x * float(self.generator.uniform(0.5, 1.5))

    def output_shape(self, input_shape):
        return input_shape


class Lowest(nn.Module):
    """Has buffers that are not finite: a mask of -inf, and what is not known yet."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", np.array([0.0, -np.inf, 0.0, 0.0]))
        self.register_buffer("unknown", np.full(3, np.nan))
        self.register_buffer("best", np.array(np.inf))

    def forward(self, x):
        return x

    def output_shape(self, input_shape):
        return input_shape


class Counted(nn.Module):
    """x; counts its calls, of which there are more with more microbatches."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", np.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x

    def output_shape(self, input_shape):
        return input_shape


class Slowing(optim.SGD):
    """Counts the calls of its rule, and has a lower rate after each."""

    calls = 0

    def _update(self, options, rate, *arguments):
        self.calls += 1
        super()._update(options, rate / self.calls, *arguments)


class Tied(nn.Sequential):
    """One weight in two layers."""

    def __init__(self):
        super().__init__(
            enter=nn.Linear(12, 9),
            norm=nn.LayerNorm(9),
            a=nn.Linear(9, 9),
            act=nn.ReLU(),
            b=nn.Linear(9, 9, bias=False),
            fc=nn.Linear(9, 4),
        )
        self.b.weight = self.a.weight


# -- normalisation: terms that cancel ------------------------------------------------------------------------------
@setup(DEEP)
def convolution_then_batch_norm_under_adam():
    return of_images(make=adam())


@setup(DEEP)
def the_same_with_a_tiny_eps():
    return of_images(make=adam(eps=1e-16))


@setup(DEEP)
def convolution_then_batch_norm_under_adamw():
    return of_images(make=lambda p: optim.AdamW(p, 1e-2))


@setup(DATA)
def batch_norm_of_nearly_constant_input():
    return experiment(lambda: nn.Sequential(nn.BatchNorm1d(12), mlp()), 1 + 1e-7 * normal(32, 12))


@setup(DATA)
def batch_norm_of_a_large_mean():
    return experiment(lambda: nn.Sequential(nn.BatchNorm1d(12), mlp()), 1e6 + normal(32, 12))


@setup(DATA)
def batch_norm_of_a_constant_feature():
    x = np.where(np.arange(12) < 2, 3.7, normal(32, 12))
    return experiment(lambda: nn.Sequential(nn.BatchNorm1d(12), mlp()), x)


@setup(DEEP)
def batch_norm_over_two_samples():
    return experiment(lambda: mlp(norm=nn.BatchNorm1d), batch=4)


@setup(DEEP)
def batch_norm_with_a_tiny_eps():
    return experiment(lambda: mlp(norm=lambda width: nn.BatchNorm1d(width, eps=1e-14)), batch=6)


@setup(DEEP)
def deep_batch_norm():
    return experiment(lambda: mlp(depth=12, norm=nn.BatchNorm1d), batch=16)


@setup(DEEP)
def layer_norm_of_constants():
    build = lambda: nn.Sequential(nn.LayerNorm(12), *mlp(norm=nn.LayerNorm)._modules.values())  # noqa: E731
    return experiment(build, np.ones((32, 12)))


@setup(DEEP)
def layer_norm_behind_biases():
    return experiment(lambda: mlp(norm=nn.LayerNorm), make=adam())


@setup(DEEP)
def layer_norm_of_two_features():
    return experiment(lambda: mlp(norm=nn.LayerNorm, width=2))


@setup(DEEP)
def local_response_norm_of_large_values():
    build = lambda: images(norm=lambda _: nn.LocalResponseNorm(3, 1.0))  # noqa: E731
    return of_images(build, 1e4 * normal(32, 2, 6, 6), make=sgd(1e-4))


# -- losses: values that fit, or saturate --------------------------------------------------------------------------
@setup(DEEP)
def saturated_softmax():
    return experiment(mlp, y=np.zeros(32, int), make=sgd(5.0), steps=8)


@setup(DEEP)
def saturated_softmax_under_adam():
    return experiment(mlp, y=np.zeros(32, int), make=adam(0.5), steps=8)


@setup(DEEP)
def softmax_of_large_scores():
    return experiment(mlp, 300 * normal(32, 12), make=sgd(1e-3))


@setup(SPLIT)
def two_classes_far_apart():
    x = np.where(np.arange(32)[:, None] % 2, 20.0, -20.0) + normal(32, 12)
    return experiment(lambda: nn.Sequential(nn.Linear(12, 2)), x, np.arange(32) % 2, sgd(1.0), steps=10)


@setup(DEEP)
def logistic_loss_at_50():
    return experiment(mlp, 50 * normal(32, 12), loss=nn.logistic_loss, make=sgd(0.01))


@setup(DEEP)
def saturated_logistic_loss():
    return experiment(mlp, y=np.zeros(32, int), loss=nn.logistic_loss, make=sgd(5.0), steps=8)


@setup(DEEP)
def mse_of_huge_targets():
    return experiment(mlp, y=1e6 + normal(32, 4), loss=nn.mse, make=sgd(1e-4), steps=8)


@setup(SPLIT)
def mse_that_fits():
    x = normal(32, 12)
    truth = normal(12, 4, seed=1)
    return experiment(lambda: nn.Sequential(nn.Linear(12, 4)), x, 1e3 + x @ truth, sgd(0.2), 32, 40, loss=nn.mse)


@setup(DEEP)
def mse_of_tiny_targets():
    return experiment(mlp, y=1e-9 * normal(32, 4), loss=nn.mse)


# -- activations ---------------------------------------------------------------------------------------------------
@setup(DEEP)
def saturated_tanh():
    return experiment(lambda: mlp(nn.Tanh), 50 * normal(32, 12))


@setup(DEEP)
def saturated_sigmoid():
    return experiment(lambda: mlp(nn.Sigmoid), 200 * normal(32, 12))


@setup(DEEP)
def saturated_tanh_under_adam():
    return experiment(lambda: mlp(nn.Tanh), 50 * normal(32, 12), make=adam())


@setup(DEEP)
def dead_relus():
    return experiment(mlp, prepare=_with_biases(-50.0))


@setup(DEEP)
def dead_relus_under_adamw():
    return experiment(mlp, prepare=_with_biases(-50.0), make=lambda p: optim.AdamW(p, 1e-2))


@setup(DEEP)
def gelu_far_out():
    return experiment(lambda: mlp(nn.GELU), -30 + normal(32, 12))


@setup(DEEP)
def equal_images_under_max_pooling():
    return of_images(lambda: images(norm=None), np.full((32, 2, 6, 6), 0.7))


@setup(DEEP)
def black_images_under_max_pooling():
    x = normal(32, 2, 6, 6) * (np.arange(36).reshape(6, 6) < 9)
    return of_images(lambda: images(norm=None), x)


def _with_biases(value):
    def prepare(network):
        for name, parameter in network.named_parameters():
            if name.endswith("bias") and not name.startswith("6"):
                parameter.data[...] = value

    return prepare


# -- sizes of values and of batches --------------------------------------------------------------------------------
@setup(DEEP)
def tiny_inputs():
    return experiment(mlp, 1e-8 * normal(32, 12))


@setup(DEEP)
def huge_inputs():
    return experiment(mlp, 1e8 * normal(32, 12), make=sgd(1e-12))


@setup(DEEP)
def features_of_unlike_sizes():
    return experiment(mlp, normal(32, 12) * 10.0 ** np.arange(-6, 6), make=sgd(1e-12))


@setup(DEEP)
def zero_inputs():
    return experiment(mlp, np.zeros((32, 12)))


@setup(DEEP)
def forty_layers():
    return experiment(lambda: mlp(nn.Tanh, depth=40, width=6), steps=3)


@setup(DEEP)
def a_single_sample():
    return experiment(mlp, batch=1)


@setup(DEEP)
def fewer_samples_than_ranks():
    return experiment(mlp, batch=3)


@setup(DATA)
def batch_norm_with_fewer_samples_than_ranks():
    return experiment(lambda: mlp(norm=nn.BatchNorm1d), batch=3)


@setup(DEEP)
def samples_that_are_all_the_same():
    return experiment(lambda: mlp(norm=nn.LayerNorm), np.repeat(normal(1, 12), 32, axis=0))


@setup(DATA)
def batch_norm_of_samples_that_are_all_the_same():
    return experiment(lambda: mlp(norm=nn.BatchNorm1d), np.repeat(normal(1, 12), 32, axis=0))


# -- rules ---------------------------------------------------------------------------------------------------------
@setup(DEEP)
def lars_with_zero_norms():
    return experiment(mlp, prepare=_zeroed, make=lambda p: optim.LARS(p, 1.0, weight_decay=1e-3))


@setup(DEEP)
def lars_of_dead_layers():
    make = lambda p: optim.LARS(p, 1.0, momentum=0.9, weight_decay=0.0)  # noqa: E731
    return experiment(mlp, prepare=_with_biases(-50.0), make=make)


@setup(DEEP)
def a_rate_of_zero():
    return experiment(mlp, make=sgd(0.0))


@setup(DEEP)
def a_decay_of_10():
    return experiment(mlp, make=sgd(0.05, 0.9, 10.0))


@setup(DEEP)
def adam_after_zero_gradients():
    return experiment(mlp, np.concatenate([np.zeros((16, 12)), normal(16, 12)]), make=adam(eps=1e-16))


@setup(DEEP)
def adam_with_a_tiny_eps():
    return experiment(mlp, make=adam(eps=1e-16))


@setup(DEEP)
def a_norm_at_the_edge_of_clipping():
    return experiment(mlp, clip_norm=0.85, make=sgd(0.05, 0.0))


@setup(DEEP)
def clipped_to_next_to_nothing():
    return experiment(mlp, clip_norm=1e-9)


@setup(TIED)
def tied_weights_under_adam():
    return experiment(Tied, make=adam())


@setup(TIED)
def tied_weights_and_lars():
    return experiment(Tied, make=lambda p: optim.LARS(p, 5, weight_decay=1e-3), clip_norm=0.05)


@setup(DATA)
def a_generator_of_the_layers_own():
    return experiment(lambda: nn.Sequential(nn.Linear(12, 8), Scaled(), nn.ReLU(), nn.Linear(8, 4)))


@setup(DEEP)
def buffers_that_are_not_finite():
    return experiment(lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4), Lowest()))


@setup(DEEP | {2: [*DEEP[2], Layout(dp=2, microbatches=3)]})
def a_counter_that_nobody_reads():
    return experiment(lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), Counted(), nn.Linear(8, 4)))


@setup({2: [Layout(dp=2, microbatches=3)], 4: [Layout(dp=4, microbatches=2)]})
def a_rule_that_counts_its_calls():
    return experiment(mlp, make=lambda parameters: Slowing(parameters, 0.1, momentum=0.9))


def _zeroed(network):
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or name.startswith("2"):
            parameter.data[...] = 0


# -- chaos, and few bits -------------------------------------------------------------------------------------------
@setup(DEEP)
def thirty_steps_at_a_rate_of_1():
    return experiment(lambda: mlp(depth=6), make=sgd(1.0), steps=30)


@setup(DEEP)
def thirty_steps_of_chaos():
    return experiment(lambda: mlp(depth=6), 3 * normal(32, 12), make=sgd(1.0, 0.9), steps=30)


@setup(DEEP)
def chaos_with_momentum():
    return experiment(lambda: mlp(nn.Tanh, depth=4), 3 * normal(32, 12), make=sgd(1.5, 0.95), steps=30)


@setup(DEEP)
def training_that_overflows():
    return experiment(mlp, y=1e3 * normal(32, 4), loss=nn.mse, make=sgd(100.0), steps=30)


@setup(DEEP)
def float32():
    return experiment(mlp, dtype="float32")


@setup(DEEP)
def float32_under_adam():
    return of_images(make=adam(), dtype="float32")


@setup(DATA)
def float32_batch_norm_of_a_large_mean():
    return experiment(lambda: nn.Sequential(nn.BatchNorm1d(12), mlp()), 100 + normal(32, 12), dtype="float32")


@setup(DEEP)
def float32_saturated_softmax():
    return experiment(mlp, y=np.zeros(32, int), make=sgd(5.0), steps=8, dtype="float32")


@setup(DEEP)
def float32_at_a_rate_of_1():
    return experiment(lambda: mlp(depth=6), make=sgd(1.0), steps=30, dtype="float32")

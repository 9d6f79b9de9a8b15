"""Other optimizers, losses and types of numbers: what `verify --all` tries besides its usual experiment.

The norm of all gradients, or of a whole weight, is summed over shards, stages and replicas; sums of float32 must stay
float32 everywhere; and the targets of a regression have several values each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl import nn, optim
from parallel_dl.equivalence.runs.record import Experiment

Vary = Callable[[Experiment], Experiment]


def lars_clipped(experiment: Experiment) -> Experiment:
    """With the norm of each weight, and the norm of all gradients."""
    make = lambda parameters: optim.LARS(parameters, 1.0, weight_decay=1e-3)  # noqa: E731
    return dataclasses.replace(experiment, make_optimizer=make, clip_norm=0.1)


def adamw(experiment: Experiment) -> Experiment:
    """With two arrays of state for each weight, and a count of updates in its rule."""
    return dataclasses.replace(experiment, make_optimizer=lambda parameters: optim.AdamW(parameters, 1e-2))


def two_groups(experiment: Experiment) -> Experiment:
    """Weights and biases with rates that follow policies of their own."""

    def make(parameters: Any) -> optim.Optimizer:
        weights, biases = ([p for p in parameters if (len(p.shape) > 1) == is_weight] for is_weight in (True, False))
        groups = [
            {"params": weights, "lr": lambda step: 0.05 / (1 + step), "momentum": 0.9},
            {"params": biases, "lr": lambda step: 0.01 * (1 + step)},
        ]
        return optim.SGD(groups, 0.05)

    return dataclasses.replace(experiment, make_optimizer=make)


def weights_alone(experiment: Experiment) -> Experiment:
    """With an optimizer that has no biases, and clipping: biases stay, and it does not clear their gradients."""
    make = lambda parameters: optim.SGD([p for p in parameters if len(p.shape) > 1], 0.05, momentum=0.9)  # noqa: E731
    return dataclasses.replace(experiment, make_optimizer=make, clip_norm=0.1)


def float32(experiment: Experiment) -> Experiment:
    """In float32."""
    return dataclasses.replace(experiment, x=experiment.x.astype("float32"), dtype="float32")


def regression(experiment: Experiment) -> Experiment:
    """Mean squared error, for targets of several values each; at a rate at which training does not diverge."""
    x = experiment.x
    outputs = nn.output_shape(experiment.build(), x.shape[1:])
    y = np.random.default_rng(3).standard_normal((len(x), *outputs)).astype(x.dtype)
    make = lambda parameters: optim.SGD(parameters, 0.005, momentum=0.9)  # noqa: E731
    return dataclasses.replace(experiment, y=y, loss=nn.mse, make_optimizer=make)


VARIATIONS: dict[str, tuple[str, Vary]] = {
    "lenet5_small, LARS, clipped": ("lenet5_small", lars_clipped),
    "norms, LARS, clipped": ("norms", lars_clipped),
    "inception, AdamW": ("inception", adamw),
    "inception, two groups": ("inception", two_groups),
    "groups, weights alone": ("groups", weights_alone),
    "lenet5_small, float32": ("lenet5_small", float32),
    "residual, float32": ("residual", float32),
    "mlp_deep, regression": ("mlp_deep", regression),
    "rowwise, regression": ("rowwise", regression),
}
"""name -> the network, and the change"""

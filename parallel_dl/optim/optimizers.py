"""The update rules SGD, Adam and AdamW, each applied to all weights at once in flat arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from parallel_dl.errors import InputError
from parallel_dl.nn import FlatParameters, Parameter, flatten
from parallel_dl.nn.flat import BLOCK, aligned_zeros, in_blocks
from parallel_dl.optim.rates import RatePolicy


def require(name: str, value: float, valid: bool, expected: str) -> float:
    """The value, if it is valid; InputError with its name and what would be expected if not."""
    if not valid:
        raise InputError(f"{name} {value}: must be {expected}")
    return value


def as_they_are(squares: np.ndarray) -> np.ndarray:
    """Sums of squares where every rank has whole weights."""
    return squares


class Optimizer:
    """What the update rules share: the parameters in flat arrays, state of the same layout, the learning rate.

    `lr` is a number or a `RatePolicy` (update number -> rate). A parameter without a gradient is left as it is. After
    n calls of `step`, `updates` is n.

    `whole_squares` is for rules that need norms where ranks have only pieces of weights: it makes sums of squares of
    whole weights of those of this rank's pieces, (..., parameters) -> the same shape. It is called once in each step.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Parameter], lr: float | RatePolicy) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise InputError("the optimizer got no parameters")
        if not callable(lr):
            require("learning rate", lr, lr >= 0 and math.isfinite(lr), "a finite number, at least 0")
        self.lr = lr
        self.updates = 0
        self.whole_squares: Callable[[np.ndarray], np.ndarray] = as_they_are
        self.groups: list[FlatParameters] = flatten(self.parameters)
        self.state: list[dict[str, np.ndarray]] = [
            {name: aligned_zeros(group.size, group.dtype) for name in self.state_names} for group in self.groups
        ]

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.lr(self.updates)) if callable(self.lr) else self.lr

    def zero_grad(self) -> None:
        """Forgets the gradients (nothing is overwritten: the next backward does that)."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, scale: float = 1.0) -> None:
        """Updates every parameter that has a gradient, by `scale` times it. The gradients stay as they are."""
        rate = self.rate
        for group, state in zip(self.groups, self.state):
            for where, gradient in group.stretches():
                arrays = (group.values[where], gradient, *(state[name][where] for name in self.state_names))
                if scale == 1:
                    self._update(rate, *arrays)
                else:
                    self._update_scaled(rate, scale, arrays)
        self.updates += 1

    def _update_scaled(self, rate: float, scale: float, arrays: tuple[np.ndarray, ...]) -> None:
        """Block by block, as the gradients may be read-only and a scaled copy is to stay in the cache."""
        scratch = np.empty(min(len(arrays[0]), BLOCK), arrays[0].dtype)

        def block(weights: np.ndarray, gradient: np.ndarray, *state: np.ndarray) -> None:
            self._update(rate, weights, np.multiply(gradient, scale, out=scratch[: len(gradient)]), *state)

        in_blocks(block, arrays)

    def _update(self, rate: float, weights: np.ndarray, gradient: np.ndarray, *state: np.ndarray) -> None:
        raise TypeError(f"{type(self).__name__} defines no update rule")

    # -- state by parameter ----------------------------------------------------------------------------------------
    def _state_views(self) -> list[tuple[Parameter, dict[str, np.ndarray]]]:
        views = {}
        for group, state in zip(self.groups, self.state):
            by_name = {name: group.views(flat) for name, flat in state.items()}
            for index, parameter in enumerate(group.parameters):
                views[id(parameter)] = {name: arrays[index] for name, arrays in by_name.items()}
        return [(parameter, views[id(parameter)]) for parameter in self.parameters]

    def state_dict(self) -> dict[str, Any]:
        """{"updates": n, "state": [{name: array} per parameter, in the order given]}: copies."""
        return {
            "updates": self.updates,
            "state": [{name: a.copy() for name, a in state.items()} for _, state in self._state_views()],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave for the same parameters."""
        views = self._state_views()
        if len(saved["state"]) != len(views):
            raise ValueError(f"optimizer state of {len(saved['state'])} parameters for {len(views)} parameters")
        self.updates = saved["updates"]
        for (_, state), given in zip(views, saved["state"]):
            for name, array in state.items():
                array[...] = given[name]


class SGD(Optimizer):
    """Stochastic gradient descent with PyTorch's momentum: v = momentum v + g; w -= lr v.

    `weight_decay` adds weight_decay w to g; `nesterov` uses g + momentum v in place of v (Sutskever et al. 2013).
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float | RatePolicy = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.momentum = require("momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1")
        self.weight_decay = require("weight decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0")
        self.nesterov = nesterov
        if nesterov and not momentum:
            raise InputError("nesterov needs a momentum above 0")
        self.state_names = ("momentum",) if momentum else ()
        super().__init__(parameters, lr)

    def _update(self, rate: float, weights: np.ndarray, gradient: np.ndarray, *state: np.ndarray) -> None:
        momentum, decay, nesterov = self.momentum, self.weight_decay, self.nesterov
        scratch = np.empty(min(len(weights), BLOCK), weights.dtype)

        def block(w: np.ndarray, g: np.ndarray, *velocity: np.ndarray) -> None:
            spare = scratch[: len(w)]
            if decay:
                g = np.add(g, np.multiply(w, decay, out=spare))
            if velocity:
                v = velocity[0]
                np.multiply(v, momentum, out=v)
                np.add(v, g, out=v)
                g = np.add(g, np.multiply(v, momentum, out=spare)) if nesterov else v
            np.subtract(w, np.multiply(g, rate, out=spare), out=w)

        in_blocks(block, (weights, gradient, *state))


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); `weight_decay` adds weight_decay w to the gradient."""

    state_names = ("first_moment", "second_moment")
    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float | RatePolicy = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for beta in betas:
            require("beta", beta, 0 <= beta < 1, "at least 0 and below 1")
        self.betas = betas
        self.eps = require("eps", eps, eps > 0, "above 0")
        self.weight_decay = require("weight decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0")
        super().__init__(parameters, lr)

    def _update(self, rate: float, weights: np.ndarray, gradient: np.ndarray, *state: np.ndarray) -> None:
        (beta1, beta2), eps, decay, decoupled = self.betas, self.eps, self.weight_decay, self.decoupled
        count = self.updates + 1
        # m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps), with the corrections as scalars
        size = rate / (1 - beta1**count)
        correction = 1 / math.sqrt(1 - beta2**count)
        scratch = np.empty((2, min(len(weights), BLOCK)), weights.dtype)

        def block(w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray) -> None:
            spare, other = scratch[0, : len(w)], scratch[1, : len(w)]
            if decay and decoupled:
                np.multiply(w, 1 - rate * decay, out=w)
            elif decay:
                g = np.add(g, np.multiply(w, decay, out=spare))
            np.multiply(m, beta1, out=m)
            np.add(m, np.multiply(g, 1 - beta1, out=spare), out=m)
            np.multiply(v, beta2, out=v)
            np.multiply(g, g, out=spare)
            np.add(v, np.multiply(spare, 1 - beta2, out=spare), out=v)
            np.sqrt(v, out=spare)
            np.add(np.multiply(spare, correction, out=spare), eps, out=spare)
            np.divide(np.multiply(m, size, out=other), spare, out=spare)
            np.subtract(w, spare, out=w)

        in_blocks(block, (weights, gradient, *state))


class AdamW(Adam):
    """Adam with decoupled weight decay: w -= lr weight_decay w (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float | RatePolicy = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

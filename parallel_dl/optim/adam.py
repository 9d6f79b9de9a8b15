"""Adam, and AdamW, whose weight decay is apart from the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from parallel_dl.nn.flat import BLOCK, in_blocks
from parallel_dl.optim.optimizer import Optimizer, Parameters
from parallel_dl.optim.options import Option, Options, require, require_weight_decay
from parallel_dl.optim.rates import RatePolicy


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); `weight_decay` adds weight_decay w to the gradient.

    The first and second moments are running means of the gradient and its square: each update multiplies the old values
    by `betas`. The bias corrections count the updates of each parameter: those in which it had a gradient.
    """

    rule = "adam"
    verified: ClassVar[Mapping[str, Any]] = {"lr": 1e-2}
    decoupled = False
    betas, eps, weight_decay = Option(), Option(), Option()

    def __init__(
        self,
        parameters: Parameters,
        lr: float | RatePolicy = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def require_options(self, options: Options) -> None:
        """Besides the rate: two betas, eps, weight decay."""
        super().require_options(options)
        require("betas", options["betas"], len(options["betas"]) == 2, "two numbers")
        for beta in options["betas"]:
            require("beta", beta, 0 <= beta < 1, "at least 0 and below 1")
        require("eps", options["eps"], options["eps"] > 0, "above 0")
        require_weight_decay(options)

    def state_of(self, options: Options) -> tuple[str, ...]:
        """Both moments."""
        return ("first_moment", "second_moment")

    def _update(
        self,
        options: Options,
        rate: float,
        updates: int,
        weights: np.ndarray,
        gradient: np.ndarray,
        *state: np.ndarray,
    ) -> None:
        (beta1, beta2), eps, decay = options["betas"], options["eps"], options["weight_decay"]
        decoupled, count = self.decoupled, updates + 1
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

    def _magnitudes(
        self,
        number: int,
        options: Options,
        rate: float,
        weights: np.ndarray,
        gradient: np.ndarray,
        state: dict[str, np.ndarray],
    ) -> None:
        gradient = gradient + options["weight_decay"] * weights
        (beta1, beta2), count = options["betas"], self.updates_of()[number]
        first, second = state["first_moment"], state["second_moment"]
        first *= beta1
        first += (1 - beta1) * gradient
        second *= beta2
        second += (1 - beta2) * gradient**2
        actual = self._state_views()[number]["second_moment"]
        divisor = np.sqrt(actual / (1 - beta2**count)) + options["eps"]
        change = rate * first / (1 - beta1**count)
        weights += np.divide(change, divisor, out=np.zeros_like(change), where=divisor > 0)


class AdamW(Adam):
    """As `Adam`, with decoupled weight decay: w -= lr weight_decay w (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    rule = "adamw"
    decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float | RatePolicy = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

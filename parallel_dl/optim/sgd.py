"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from parallel_dl.errors import InputError
from parallel_dl.nn.flat import BLOCK, in_blocks
from parallel_dl.optim.optimizer import Optimizer, Parameters
from parallel_dl.optim.options import Option, Options, require_momentum, require_weight_decay
from parallel_dl.optim.rates import RatePolicy


class SGD(Optimizer):
    """Stochastic gradient descent with PyTorch's momentum: v = momentum v + g; w -= lr v.

    `weight_decay` adds weight_decay w to g; `nesterov` uses g + momentum v instead of v (Sutskever et al. 2013).
    """

    rule = "sgd"
    usual: ClassVar[Mapping[str, Any]] = {"momentum": 0.9}
    verified: ClassVar[Mapping[str, Any]] = {"lr": 0.05, "momentum": 0.9}
    momentum, weight_decay, nesterov = Option(), Option(), Option()

    def __init__(
        self,
        parameters: Parameters,
        lr: float | RatePolicy = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def require_options(self, options: Options) -> None:
        """Besides the rate: momentum and weight decay; nesterov needs a momentum."""
        super().require_options(options)
        require_momentum(options)
        require_weight_decay(options)
        if options["nesterov"] and not options["momentum"]:
            raise InputError("needs a `momentum` above 0", "nesterov")

    def state_of(self, options: Options) -> tuple[str, ...]:
        """The momentum, if there is one."""
        return ("momentum",) if options["momentum"] else ()

    def _update(
        self,
        options: Options,
        rate: float,
        updates: int,
        weights: np.ndarray,
        gradient: np.ndarray,
        *state: np.ndarray,
    ) -> None:
        momentum, decay, nesterov = options["momentum"], options["weight_decay"], options["nesterov"]
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
        change = gradient
        if state:
            velocity = state["momentum"]
            velocity *= options["momentum"]
            velocity += gradient
            change = gradient + options["momentum"] * velocity if options["nesterov"] else velocity
        weights += rate * change

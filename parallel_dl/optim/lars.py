"""LARS: each weight moves by a share of its own norm, whatever the size of its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from parallel_dl.nn import Parameter
from parallel_dl.nn.flat import BLOCK, in_blocks
from parallel_dl.optim.norms import gradient_squares, sum_of_squares
from parallel_dl.optim.optimizers import Optimizer, require
from parallel_dl.optim.rates import RatePolicy


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017, arXiv 1708.03888, algorithm 1).

        ratio = trust ||w|| / (||g|| + weight_decay ||w|| + eps)
        v = momentum v + lr ratio (g + weight_decay w);  w -= v

    for each parameter by itself. Unlike in `SGD` the rate is inside v, as in the article. Parameters of one dimension
    (biases, the scales and shifts of normalisations) have ratio 1 and no weight decay, as is usual; so have, for the
    ratio, a weight or gradient that is all zeros. `trust_ratios` has the ratios of the last step, by parameter.

    The norms are those of whole weights: where ranks have pieces, give `whole_squares` (the `Trainer` does). Raises
    InputError for a momentum outside 0..1, a negative weight decay or eps, and a trust that is not above 0.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float | RatePolicy = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        self.momentum = require("momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1")
        self.weight_decay = require("weight decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0")
        self.trust = require("trust", trust, 0 < trust < math.inf, "above 0")
        self.eps = require("eps", eps, 0 <= eps < math.inf, "at least 0")
        self.state_names = ("momentum",) if momentum else ()
        super().__init__(parameters, lr)
        self.adapted = [len(parameter.whole_shape) > 1 for parameter in self.parameters]
        self.trust_ratios = [1.0] * len(self.parameters)

    def step(self, scale: float = 1.0) -> None:
        """Updates every parameter that has a gradient, by `scale` times it. Collective where `whole_squares` is."""
        rate = self.rate
        self.trust_ratios = self._ratios(scale)
        by_parameter = zip(self.parameters, self.adapted, self.trust_ratios)
        own = {id(parameter): (ratio, adapted) for parameter, adapted, ratio in by_parameter}
        for group, state in zip(self.groups, self.state):
            for parameter, where in zip(group.parameters, group.slices):
                if parameter.grad is None or id(parameter) not in own:
                    continue
                ratio, adapted = own[id(parameter)]
                arrays = (group.values[where], parameter.grad.reshape(-1), *(state[n][where] for n in self.state_names))
                self._move(rate * ratio, scale, self.weight_decay if adapted else 0.0, arrays)
        self.updates += 1

    def _ratios(self, scale: float) -> list[float]:
        """The ratio of each parameter, from norms of whole weights and `scale` times their whole gradients."""
        weights = [sum_of_squares(p.data) if a else 0.0 for p, a in zip(self.parameters, self.adapted)]
        squares = self.whole_squares(np.array([weights, gradient_squares(self.parameters)]))  # (2, parameters)
        of_weight, of_gradient = np.sqrt(squares)
        of_gradient = scale * of_gradient
        usual = np.array(self.adapted) & (of_weight > 0) & (of_gradient > 0)
        divisor = np.where(usual, of_gradient + self.weight_decay * of_weight + self.eps, 1.0)
        return np.where(usual, self.trust * of_weight / divisor, 1.0).tolist()

    def _move(self, rate: float, scale: float, decay: float, arrays: tuple[np.ndarray, ...]) -> None:
        momentum, weights = self.momentum, arrays[0]
        scratch = np.empty((2, min(len(weights), BLOCK)), weights.dtype)

        def block(w: np.ndarray, g: np.ndarray, *velocity: np.ndarray) -> None:
            change, spare = scratch[0, : len(w)], scratch[1, : len(w)]
            np.multiply(g, rate * scale, out=change)
            if decay:
                np.add(change, np.multiply(w, rate * decay, out=spare), out=change)
            if velocity:
                v = velocity[0]
                np.multiply(v, momentum, out=v)
                change = np.add(v, change, out=v)
            np.subtract(w, change, out=w)

        in_blocks(block, arrays)

"""LARS: each weight moves by a share of its own norm, whatever the size of its gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from parallel_dl.nn.flat import BLOCK, in_blocks
from parallel_dl.optim.norms import gradient_squares
from parallel_dl.optim.optimizer import Optimizer, Parameters
from parallel_dl.optim.options import Option, Options, require, require_momentum, require_weight_decay
from parallel_dl.optim.rates import RatePolicy


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017, arXiv 1708.03888, algorithm 1).

        ratio = trust ||w|| / (||g|| + weight_decay ||w|| + eps)
        v = momentum v + lr ratio (g + weight_decay w);  w -= v

    separately for each parameter. Unlike in `SGD`, the rate is inside v, as in the paper. One-dimensional parameters
    (biases, the scales and shifts of normalisations) have ratio 1 and no weight decay, as is usual; a weight or
    gradient that is all zeros also has ratio 1. `trust_ratios` has the ratios of the last step, by parameter.

    The norms are those of whole weights: if ranks have shards, set `squares_of` and `whole_squares` (the `Trainer`
    does). Raises InputError for a momentum outside 0..1, a negative weight decay or eps, and a trust that is not above
    0.
    """

    rule = "lars"
    verified: ClassVar[Mapping[str, Any]] = {"lr": 1.0, "weight_decay": 1e-3}
    momentum, weight_decay, trust, eps = Option(), Option(), Option(), Option()

    def __init__(
        self,
        parameters: Parameters,
        lr: float | RatePolicy = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, lr, momentum=momentum, weight_decay=weight_decay, trust=trust, eps=eps)
        self.trust_ratios = [1.0] * len(self.parameters)

    def require_options(self, options: Options) -> None:
        """Besides the rate: momentum, weight decay, trust, eps."""
        super().require_options(options)
        require_momentum(options)
        require_weight_decay(options)
        require("trust", options["trust"], 0 < options["trust"] < math.inf, "above 0")
        require("eps", options["eps"], 0 <= options["eps"] < math.inf, "at least 0")

    def state_of(self, options: Options) -> tuple[str, ...]:
        """The momentum, if there is one."""
        return ("momentum",) if options["momentum"] else ()

    @property
    def adapted(self) -> list[bool]:
        """For each parameter, whether LARS adapts its rate and applies weight decay."""
        return [len(parameter.whole_shape) > 1 for parameter in self.parameters]

    def step(self, scale: float = 1.0) -> None:
        """Updates every parameter that has a gradient, using `scale` times it. Collective if `whole_squares` is."""
        work = self._work()
        self.trust_ratios = self._ratios(scale)
        by_parameter = zip(self.parameters, self.adapted, self.trust_ratios)
        own = {id(parameter): (ratio, adapted) for parameter, adapted, ratio in by_parameter}
        for part, rate, stretch, pieces in work:
            options = part.group
            state = [part.state[name][stretch.where] for name in self.state_of(options)]
            for piece in pieces:
                for place in range(piece.places.start, piece.places.stop):
                    where = stretch.offsets[place]
                    at = slice(where.start - piece.where.start, where.stop - piece.where.start)
                    ratio, adapted = own[id(stretch.parameters[place])]
                    arrays = (stretch.weights[where], piece.gradient[at], *(array[where] for array in state))
                    self._move(options, rate * ratio, scale, adapted, arrays)
                stretch.count(piece)
        self.updates += 1

    def _ratios(self, scale: float) -> list[float]:
        """The ratio of each parameter, from norms of whole weights and `scale` times their whole gradients."""
        weights = [self.squares_of(p, p.data if a else None) for p, a in zip(self.parameters, self.adapted)]
        of_gradients = gradient_squares(self.parameters, self.squares_of)
        squares = self.whole_squares(np.array([weights, of_gradients]))  # (2, parameters)
        of_weight, of_gradient = np.sqrt(squares)
        of_gradient = scale * of_gradient
        usual = np.array(self.adapted) & (of_weight > 0) & (of_gradient > 0)
        names = ("weight_decay", "eps", "trust")
        decay, eps, trust = (np.array([options[name] for options in self.options_of()]) for name in names)
        divisor = np.where(usual, of_gradient + decay * of_weight + eps, 1.0)
        return np.where(usual, trust * of_weight / divisor, 1.0).tolist()

    def _move(self, options: Options, rate: float, scale: float, adapted: bool, arrays: tuple[np.ndarray, ...]) -> None:
        momentum, weights = options["momentum"], arrays[0]
        decay = options["weight_decay"] if adapted else 0.0
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

    def _magnitudes(
        self,
        number: int,
        options: Options,
        rate: float,
        weights: np.ndarray,
        gradient: np.ndarray,
        state: dict[str, np.ndarray],
    ) -> None:
        decay = options["weight_decay"] if self.adapted[number] else 0.0
        change = rate * self.trust_ratios[number] * (gradient + decay * weights)
        if state:
            velocity = state["momentum"]
            velocity *= options["momentum"]
            velocity += change
            change = velocity
        weights += change

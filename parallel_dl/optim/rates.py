"""Learning-rate policies: pure functions from the update number (from 0) to the rate; they can be pickled."""

import functools
import math
from collections.abc import Callable

from parallel_dl.errors import InputError

RatePolicy = Callable[[int], float]


def _rate(rate: float) -> float:
    if not (math.isfinite(rate) and rate >= 0):
        raise InputError("must be a finite number, at least 0", "lr", rate)
    return rate


def _count(name: str, steps: int) -> int:
    if steps < 1:
        raise InputError(f"{name} {steps}: must be at least 1")
    return steps


def constant(rate: float) -> RatePolicy:
    """Always `rate`."""
    _rate(rate)
    return functools.partial(_constant, rate)


def step(rate: float, every: int, factor: float = 0.1) -> RatePolicy:
    """`rate`, multiplied by `factor` after each `every` updates."""
    _rate(rate), _count("every", every)
    return functools.partial(_step, rate, every, factor)


def cosine(rate: float, steps: int, final: float = 0.0) -> RatePolicy:
    """Half a cosine from `rate` to `final` over `steps` updates (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    _rate(rate), _rate(final), _count("steps", steps)
    return functools.partial(_cosine, rate, steps, final)


def warmup(policy: RatePolicy, steps: int) -> RatePolicy:
    """`policy` with a linear warm-up over the first `steps` updates: update k has (k + 1) / (steps + 1) of its rate.

    (Goyal et al. 2017, arXiv 1706.02677, section 2.2.)
    """
    if steps < 0:
        raise InputError(f"warm-up steps {steps}: must be at least 0")
    return functools.partial(_warmup, policy, steps)


def _constant(rate: float, update: int) -> float:
    return rate


def _step(rate: float, every: int, factor: float, update: int) -> float:
    return rate * factor ** (update // every)


def _cosine(rate: float, steps: int, final: float, update: int) -> float:
    return final + (rate - final) * (1 + math.cos(math.pi * min(update, steps) / steps)) / 2


def _warmup(policy: RatePolicy, steps: int, update: int) -> float:
    return policy(update) * min(1.0, (update + 1) / (steps + 1))

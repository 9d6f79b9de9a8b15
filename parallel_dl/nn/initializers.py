"""How a parameter's values are drawn. An initializer is `f(generator, (rows, columns)) -> float64 array`.

Initializers made here, and networks that use them, can be pickled.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

Initializer = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def constant(value: float) -> Initializer:
    """Every element is `value`."""
    return functools.partial(_constant, float(value))


def uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound)."""
    return functools.partial(_uniform, bound)


def normal(deviation: float) -> Initializer:
    """Normal with mean 0 and this standard deviation."""
    return functools.partial(_normal, deviation)


def kaiming_uniform(fan_in: int, gain: float = math.sqrt(2.0)) -> Initializer:
    """Uniform with variance gain**2 / fan_in (He et al. 2015, arXiv 1502.01852, equation 10); sqrt(2) suits ReLU."""
    return uniform(gain * math.sqrt(3.0 / max(1, fan_in)))


def xavier_uniform(fan_in: int, fan_out: int) -> Initializer:
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, equation 16)."""
    return uniform(math.sqrt(6.0 / max(1, fan_in + fan_out)))


def _constant(value: float, generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return np.full(size, value)


def _uniform(bound: float, generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return generator.uniform(-bound, bound, size)


def _normal(deviation: float, generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return generator.normal(0.0, deviation, size)

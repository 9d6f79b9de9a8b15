"""Does a function's gradient agree with finite differences?"""

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.autograd.tensor import Array, Tensor


def gradcheck(
    function: Callable[..., Any], *arguments: Any, seed: int = 0, step: float = 1e-3, tolerance: float = 1e-6, **static: Any
) -> float:
    """Compares backward with fourth-order central differences, in float64; returns the relative error.

    Every floating-point array among the positional arguments is checked, each element of it, against
    <function(*arguments), v> for one random v per result. The error is the largest difference divided by the largest
    magnitude in that gradient (at least 1e-3 of the largest over all of them, so that a gradient of zeros can be
    judged). Raises AssertionError above `tolerance`, naming the argument and the element.
    """
    random = np.random.default_rng(seed)
    arrays = [
        np.asarray(a, np.float64) if isinstance(a, (np.ndarray, Tensor)) and np.asarray(_array(a)).dtype.kind == "f" else a
        for a in map(_array, arguments)
    ]
    checked = [i for i, a in enumerate(arrays) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]

    def run(inputs: list) -> tuple[list[Tensor], list[Tensor]]:
        tensors = [_like(a) if i in checked else a for i, a in enumerate(inputs)]
        results = function(*tensors, **static)
        return tensors, list(results) if isinstance(results, tuple) else [results]

    tensors, results = run(arrays)
    weights = [random.standard_normal(result.shape) for result in results]
    total = None
    for result, weight in zip(results, weights):
        term = (result * weight).sum()
        total = term if total is None else total + term
    assert total is not None
    if total.requires_grad:
        total.backward()

    def value(inputs: list) -> float:
        return float(sum((result.data * weight).sum() for result, weight in zip(run(inputs)[1], weights)))

    analytic = {i: np.zeros(arrays[i].shape) if tensors[i].grad is None else tensors[i].grad for i in checked}
    numeric = {i: _differences(value, arrays, i, step) for i in checked}
    overall = max((np.abs(n).max() for n in numeric.values() if n.size), default=0.0)
    worst = 0.0
    for i in checked:
        assert analytic[i].shape == arrays[i].shape, f"argument {i}: gradient has shape {analytic[i].shape}"
        if not arrays[i].size:
            continue
        difference = np.abs(analytic[i] - numeric[i])
        error = float(difference.max() / max(np.abs(numeric[i]).max(), 1e-3 * overall, 1e-12))
        where = np.unravel_index(np.argmax(difference), difference.shape)
        assert error <= tolerance, (
            f"argument {i}, element {tuple(map(int, where))}: backward gives {analytic[i][where]:.12g}, "
            f"differences give {numeric[i][where]:.12g} (relative error {error:.1e}, allowed {tolerance:.0e})"
        )
        worst = max(worst, error)
    return worst


def _array(argument: Any) -> Any:
    return argument.data if isinstance(argument, Tensor) else argument


def _like(array: Array) -> Tensor:
    """A leaf that keeps the array's memory layout: non-contiguous inputs stay non-contiguous."""
    return Tensor(array, requires_grad=True)


def _differences(value: Callable[[list], float], arrays: list, which: int, step: float) -> Array:
    """d value / d arrays[which] by (f(-2h) - 8 f(-h) + 8 f(h) - f(2h)) / 12h for each element."""
    gradient = np.zeros(arrays[which].shape)
    original = arrays[which]
    for position in np.ndindex(original.shape):
        samples = []
        for offset in (-2, -1, 1, 2):
            moved = original.copy(order="K")
            moved[position] += offset * step
            samples.append(value([*arrays[:which], moved, *arrays[which + 1 :]]))
        gradient[position] = (samples[0] - 8 * samples[1] + 8 * samples[2] - samples[3]) / (12 * step)
    return gradient

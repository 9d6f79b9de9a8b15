"""Does a function's gradient agree with finite differences?"""

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.autograd.tape import no_grad
from parallel_dl.autograd.tensor import Array, Tensor


def gradcheck(
    function: Callable[..., Any],
    *arguments: Any,
    seed: int = 0,
    step: float = 1e-3,
    tolerance: float = 1e-6,
    **static: Any,
) -> float:
    """Compares backward with fourth-order central differences in float64; returns the relative error.

    Checks each element of every floating-point array among the positional arguments, against <function(*arguments), v>
    for one random v per result; `step` is the step of the differences. The error is the largest difference divided by
    the largest magnitude in that gradient (but at least 1e-3 of the largest over all gradients, and at least 1e-6 of
    the sum of the magnitudes in the product: differences are no more exact than that, and a gradient of zeros can be
    judged). Raises AssertionError above `tolerance`, naming the argument and the element.
    """
    random = np.random.default_rng(seed)
    arrays = [_in_double(argument) for argument in arguments]
    checked = [i for i, a in enumerate(arrays) if _is_floating(a)]

    def run(inputs: list) -> tuple[list, list[Tensor]]:
        # the leaves keep the arrays' memory layout: non-contiguous inputs stay non-contiguous
        tensors = [Tensor(a, requires_grad=True) if i in checked else a for i, a in enumerate(inputs)]
        results = function(*tensors, **static)
        return tensors, list(results) if isinstance(results, tuple) else [results]

    tensors, results = run(arrays)
    weights = [random.standard_normal(result.shape) for result in results]
    total = Tensor(np.zeros(()))
    for result, weight in zip(results, weights):
        total = total + (result * weight).sum()
    if total.requires_grad:
        total.backward()

    def value(inputs: list) -> float:
        with no_grad():
            return float(sum((result.data * weight).sum() for result, weight in zip(run(inputs)[1], weights)))

    analytic = {i: np.zeros(arrays[i].shape) if tensors[i].grad is None else tensors[i].grad for i in checked}
    numeric = {i: _differences(value, arrays, i, step) for i in checked}
    overall = max((np.abs(n).max() for n in numeric.values() if n.size), default=0.0)
    magnitude = sum(np.abs(result.data * weight).sum() for result, weight in zip(results, weights))
    floor = max(1e-3 * overall, 1e-6 * magnitude, 1e-12)
    worst = 0.0
    for i in checked:
        if not arrays[i].size:
            continue
        difference = np.abs(analytic[i] - numeric[i])
        error = float(difference.max() / max(np.abs(numeric[i]).max(), floor))
        if not error <= tolerance:  # also if it is not a number
            where = np.unravel_index(np.argmax(difference), difference.shape)
            raise AssertionError(
                f"argument {i}, element {tuple(map(int, where))}: backward gives {analytic[i][where]:.12g}, "
                f"differences give {numeric[i][where]:.12g} (relative error {error:.1e}, allowed {tolerance:.0e})"
            )
        worst = max(worst, error)
    return worst


def _is_floating(argument: Any) -> bool:
    return isinstance(argument, np.ndarray) and argument.dtype.kind == "f"


def _in_double(argument: Any) -> Any:
    """A floating-point array or tensor as a float64 array; anything else as it is."""
    array = argument.data if isinstance(argument, Tensor) else argument
    return np.asarray(array, np.float64) if _is_floating(array) else array


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

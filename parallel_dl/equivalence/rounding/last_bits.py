"""How far rounding alone moves a serial run: every layer's input, result and gradients are moved in their last bits.

Ranks add up in another order, and multiply matrices of other shapes. Either changes last bits; how far these changes
grow, in a normalisation that divides by almost zero or in training that is chaotic, depends on the network. So it is
measured, step by step and tensor by tensor, in runs of whole batches: unlike a sum over samples this says nothing of
layers that mix samples, which is not rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor
from parallel_dl.equivalence.rounding.passing import rounded
from parallel_dl.equivalence.rounding.samples import at_zero
from parallel_dl.nn import BatchNorm, Dropout, Flatten, Identity, LayerNorm, MaxPool2d, Module, ReLU, Sequential
from parallel_dl.nn.shapes import computes_as
from parallel_dl.trainer import Trainer

SIZE = 2  # of the moves at most, in units of the machine's epsilon
EXACT = (Dropout, Flatten, Identity, MaxPool2d, ReLU, Sequential)  # these add up nothing
OURS = "parallel_dl."

Move = Callable[[np.ndarray], np.ndarray]


def round_otherwise(trainer: Trainer, seed: int) -> None:
    """From now on the trainer computes with other last bits, drawn from `seed`."""
    random = np.random.default_rng([seed, 4711])

    def move(array: np.ndarray) -> np.ndarray:
        return array * (1 + _bits(array, random))

    seen = set()
    for _, layer in trainer.network.named_modules():
        if id(layer) in seen or any(computes_as(layer, kind) for kind in EXACT):
            continue
        seen.add(id(layer))
        is_own = not type(layer).__module__.startswith(OURS)
        layer.register_forward_pre_hook(_moved_input(move, is_own))
        layer.register_forward_hook(_moved_result(move))
        if isinstance(layer, BatchNorm | LayerNorm):
            normalisation = _Normalisation(random)
            layer.register_forward_pre_hook(normalisation.before)
            layer.register_forward_hook(normalisation.after)
    loss = trainer.loss

    def loss_of_moved(scores: Any, targets: Any, total: Any) -> Any:
        if not isinstance(scores, Tensor) or not scores.requires_grad:
            return loss(scores, targets, total)
        found = at_zero(loss, scores.data, targets, total)

        def back(g: np.ndarray) -> np.ndarray:
            return move(g) if found is None else move(g) + found[1] * _bits(g, random)

        return loss(rounded(scores, move=move, back=back), targets, total)

    trainer.loss = loss_of_moved
    if trainer.pipeline is not None:
        trainer.pipeline.runner.loss = loss_of_moved


def _bits(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Numbers of the array's shape and type, of at most SIZE times its epsilon."""
    reach = SIZE * float(np.finfo(array.dtype).eps)
    return random.uniform(-reach, reach, array.shape).astype(array.dtype)


class _Normalisation:
    """Moves the terms that a normalisation adds up, which nearly cancel when it is over only two or three values.

    With x^ = (x - mean) / s and h = g weight the gradient is (h - mean(h) - x^ mean(h x^)) / s. For two values, x^ is
    1 and -1: no change of x or g reaches the result, although each term rounds by itself.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self._terms: list[dict[str, np.ndarray]] = []  # of the calls that have begun

    def before(self, layer: Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = arguments
        terms: dict[str, np.ndarray] = {}
        self._terms.append(terms)
        if not isinstance(x, Tensor) or not x.requires_grad:
            return arguments

        def back(g: np.ndarray) -> np.ndarray:
            return g + terms["back"] * _bits(g, self.random) if "back" in terms else g

        return rounded(x, move=lambda array: array, back=back), *others

    def after(self, layer: Any, arguments: tuple[Any, ...], result: Any) -> Any:
        terms = self._terms.pop()
        x = arguments[0].data if isinstance(arguments[0], Tensor) else arguments[0]
        if not isinstance(result, Tensor) or not result.requires_grad or not x.size or not _has_statistics(layer):
            return result
        over, weight = _normalised(layer, x)
        mean = x.mean(axis=over, keepdims=True)
        s = np.sqrt(np.square(x - mean).mean(axis=over, keepdims=True) + layer.eps)
        normal = np.abs(x - mean) / s
        cancelled = (np.abs(x) + np.abs(mean)) / s  # the two terms whose difference is x^

        def mean_of(terms: np.ndarray) -> np.ndarray:
            return terms.mean(axis=over, keepdims=True)

        def back(g: np.ndarray) -> np.ndarray:
            h = np.abs(g * weight)
            through = mean_of(h) + (normal + cancelled) * mean_of(h * normal) + normal * mean_of(h * cancelled)
            terms["back"] = ((h + through) / s).astype(g.dtype)
            return g

        reach = (cancelled * np.abs(weight)).astype(result.dtype)
        return rounded(result, move=lambda array: array + reach * _bits(array, self.random), back=back)


def _has_statistics(layer: Module) -> bool:
    """Whether it computes mean and variance, which batch norm in evaluation mode takes from its buffers."""
    return layer.training or not isinstance(layer, BatchNorm)


def _normalised(layer: Any, x: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """The axes over which mean and variance are taken, and the weight in a shape to multiply x by."""
    if isinstance(layer, BatchNorm):
        over = (0, *range(2, x.ndim))
        return over, np.ones(1) if layer.weight is None else layer.weight.data.reshape(-1, *[1] * (x.ndim - 2))
    over = tuple(range(x.ndim - len(layer.normalized_shape), x.ndim))
    return over, np.ones(1) if layer.weight is None else layer.weight.data


def _moved_input(move: Move, is_own: bool) -> Any:
    change = _but_for_whole_numbers(move) if is_own else move

    def hook(layer: Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = arguments
        if isinstance(x, Tensor) and x.dtype.kind == "f":
            return rounded(x, move=change, back=move), *others
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            return change(x), *others
        return arguments

    return hook


def _moved_result(move: Move) -> Any:
    change = _but_for_whole_numbers(move)

    def hook(layer: Module, arguments: tuple[Any, ...], result: Any) -> Any:
        if isinstance(result, Tensor) and result.requires_grad:
            return rounded(result, move=move)
        if isinstance(result, Tensor) and result.dtype.kind == "f":  # of a first layer that has no weights
            return Tensor(change(result.data))
        return change(result) if isinstance(result, np.ndarray) and result.dtype.kind == "f" else result

    return hook


def _but_for_whole_numbers(move: Move) -> Move:
    """Layers of the user's own may take these for indices."""
    return lambda array: np.where(array == np.rint(array), array, move(array))

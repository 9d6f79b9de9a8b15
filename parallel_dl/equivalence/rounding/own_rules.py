"""Magnitudes under an update rule that is not known here: measured, by moving what it is given.

Before each update the optimizer is copied, with its network. The copies are then given weights, gradients and state
that are moved by a small part of their magnitudes, with every choice of signs. The largest move of a result, divided
by that part, is its magnitude; it is at least the value itself and its change. If a rule treats each value by itself,
this is the sum of what weights, gradient and state contribute. Gradients are moved by no more than rounding, too: a
rule that takes their signs jumps then where a gradient is zero in theory.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np

from parallel_dl.equivalence.rounding.magnitudes import Arrays, Magnitudes, buffer_magnitudes
from parallel_dl.nn import Module
from parallel_dl.optim import Optimizer

_STEP = {"float64": 1e-6, "float32": 1e-3}  # of the magnitudes
_ROUNDING, _JUMP = 64, 10.0  # a step in units of epsilon, at which a smooth rule's rounding counts for less than a jump
_SMALL_EPS = 1e-12  # of Adam: it divides a gradient by about its own size, and by this
_NEEDS = (
    "a rule of your own is a subclass of optim.Optimizer, whose state is in the arrays that state_of names, and which "
    "can be copied with copy.deepcopy"
)


def is_known(optimizer: Optimizer) -> bool:
    """Whether `Magnitudes` knows the rule: it says its own magnitudes, and was not replaced in a subclass."""
    bases = (base for base in type(optimizer).__mro__ if issubclass(base, Optimizer))
    rule = next(base for base in bases if "_magnitudes" in vars(base))
    return rule is not Optimizer and type(optimizer)._update is rule._update


def may_take_signs(optimizer: Optimizer) -> bool:
    """Whether a gradient that is rounding and nothing else may move a weight as far as any other."""
    return not is_known(optimizer) or any(group.get("eps", 1.0) < _SMALL_EPS for group in optimizer.param_groups)


class MeasuredRule(Magnitudes):
    """As `Magnitudes`, for any optimizer; `before_update` is called before each update."""

    def __init__(self, network: Module, optimizer: Optimizer) -> None:
        super().__init__(network, optimizer)
        dtype = str(optimizer.parameters[0].data.dtype)
        self._step, self._rounding = _STEP[dtype], _ROUNDING * float(np.finfo(dtype).eps)

    def before_update(self) -> None:
        """Keeps a copy of the optimizer as it is."""
        self._before = self._copy(self.network, self.optimizer)

    def update(self, gradients: Arrays, clipped: float = 1.0) -> dict[str, Arrays]:
        """After the optimizer's step with gradients of these magnitudes; see `Magnitudes.update`."""
        given = [parameter.grad for parameter in self.optimizer.parameters]
        made = _result(self.optimizer, self.names)
        before = _result(self._before[1], self.names)
        largest = {
            name: np.maximum(np.abs(array), np.abs(array - before[name])).astype(float) for name, array in made.items()
        }
        kinds = ("weights", "gradients", *self.optimizer.state_names)

        def changes(step: float, signs: tuple[float, ...]) -> Iterator[tuple[str, np.ndarray]]:
            by = {kind: sign * step for kind, sign in zip(kinds, signs)}
            for name, array in self._moved(given, gradients, by, clipped).items():
                change = np.abs(array - made[name]).astype(float) / step
                yield name, np.where(np.isfinite(change), change, 0.0)

        for signs in itertools.product((1.0, -1.0), repeat=len(kinds)):
            for name, change in changes(self._step, signs):
                largest[name] = np.fmax(largest[name], change)
        for sign in (
            1.0,
            -1.0,
        ):  # the sign of a gradient that is rounding and nothing else: a jump, however small the step
            for name, change in changes(self._rounding, tuple(sign * (kind == "gradients") for kind in kinds)):
                largest[name] = np.where(change > _JUMP * largest[name], change, largest[name])
        for name in self.names:
            self.weights[name] = largest.pop(name)
        self.state = largest
        return {"state": dict(self.state), "weights": dict(self.weights) | buffer_magnitudes(self.network)}

    def _moved(self, given: list, gradients: Arrays, by: dict[str, float], clipped: float) -> Arrays:
        """What a copy of the optimizer makes of weights, gradients and state that are moved by this much."""
        _, optimizer = self._copy(*self._before)
        saved = optimizer.state_dict()
        for name, state in zip(self.names, saved["state"]):
            for key, array in state.items():
                array += (by[key] * self.state[f"{name} {key}"]).astype(array.dtype)
        try:
            with np.errstate(all="ignore"):
                optimizer.load_state_dict(saved)
                for name, parameter, gradient in zip(self.names, optimizer.parameters, given):
                    parameter.data += (by["weights"] * self.weights[name]).astype(parameter.data.dtype)
                    parameter.grad = None
                    if gradient is not None:
                        moved = by["gradients"] * gradients.get(name, np.zeros(gradient.shape))
                        parameter.grad = (gradient + moved).astype(gradient.dtype)
                if clipped == 1:
                    optimizer.step()
                else:
                    optimizer.step(clipped)
        except Exception as error:
            raise _failed(optimizer, error) from error
        return _result(optimizer, self.names)

    def _copy(self, network: Module, optimizer: Optimizer) -> tuple[Module, Optimizer]:
        try:
            return copy.deepcopy((network, optimizer))
        except Exception as error:
            raise _failed(optimizer, error) from error


def magnitudes_of(network: Module, optimizer: Optimizer) -> Magnitudes:
    """The magnitudes that follow this optimizer: by its rule, or measured."""
    return Magnitudes(network, optimizer) if is_known(optimizer) else MeasuredRule(network, optimizer)


def before_update(magnitudes: Magnitudes) -> None:
    """To be called before each update: a rule is measured on a copy of the optimizer as it is now."""
    if isinstance(magnitudes, MeasuredRule):
        magnitudes.before_update()


def _result(optimizer: Optimizer, names: list[str]) -> Arrays:
    """Copies of the weights by name, and of the state like "fc1.weight momentum"."""
    found = {name: parameter.data.copy() for name, parameter in zip(names, optimizer.parameters)}
    for name, state in zip(names, optimizer.state_dict()["state"]):
        found |= {f"{name} {key}": array for key, array in state.items()}
    return found


def _failed(optimizer: Optimizer, error: Exception) -> TypeError:
    said = f"{type(error).__name__}: {error}"
    return TypeError(f"{type(optimizer).__name__}: rounding is measured on copies, which fail with {said}; {_NEEDS}")

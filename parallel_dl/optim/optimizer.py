"""What all update rules share: parameters in groups, one update of all weights at once, state by parameter."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from parallel_dl.errors import InputError, number_of
from parallel_dl.nn import Newcomers, Parameter, ordered
from parallel_dl.nn.flat import BLOCK, Piece, Stretch, in_blocks
from parallel_dl.optim.norms import SquaresOf, squares_of
from parallel_dl.optim.options import Option, Options, is_number, require
from parallel_dl.optim.rates import RatePolicy
from parallel_dl.optim.state import Part

Parameters = Iterable[Parameter] | Iterable[Mapping[str, Any]]


def as_they_are(squares: np.ndarray) -> np.ndarray:
    """The sums of squares of whole weights, if every rank has whole weights."""
    return squares


class Optimizer:
    """Base of the update rules: parameter groups, state in flat arrays, the learning rate.

    `parameters` is a list of parameters, or of groups as in PyTorch: `[{"params": [...], "lr": 0.01}, ...]`, where the
    other arguments give the defaults for options missing from a group; a group may be empty. `param_groups` has the
    groups with all their options, which may be changed between updates. An update changes exactly these parameters,
    whatever other optimizers the network has.

    `lr` is a number or a `RatePolicy` (update number -> rate). A parameter without a gradient is not updated. After n
    calls of `step`, `updates` is n.

    Between updates, parameters may be frozen, unfrozen and assigned other arrays of the same shape and dtype. `step`
    raises InputError, before changing anything, if the shape or dtype of a parameter differs from its state, and if a
    weight that was added to the network, or unfrozen, after this optimizer was made has a gradient but is in no
    optimizer. TypeError for anything but a list of parameters or groups; InputError for a parameter given twice and for
    options out of range.

    `squares_of` and `whole_squares` are for rules that need norms when ranks have only shards of weights. The first
    returns the sum of squares of this rank's shard of a parameter (`norms.SquaresOf`). The second turns these, (...,
    parameters) or (..., parameters, summands), into the sums for whole weights, (..., parameters); each step calls it
    once.
    """

    rule: ClassVar[str] = ""
    """the name of the rule: state of another is not loaded"""
    usual: ClassVar[Mapping[str, Any]] = {}
    """options of the command line that are not the defaults of the constructor"""
    verified: ClassVar[Mapping[str, Any]] = {}
    """the options, `lr` too, with which `verify` compares layouts"""
    _living: ClassVar[weakref.WeakSet[Optimizer]] = weakref.WeakSet()
    lr = Option()

    def __init__(self, parameters: Parameters, lr: float | RatePolicy, **options: Any) -> None:
        self.defaults = {"lr": lr, **options}
        self.updates = 0
        self.squares_of: SquaresOf = squares_of
        self.whole_squares: Callable[[np.ndarray], np.ndarray] = as_they_are
        self.param_groups: list[dict[str, Any]] = []
        self.parameters: list[Parameter] = []
        self._parts: list[Part] = []
        self._newcomers: Newcomers | None = None
        self._left_out: list[str] | None = None  # of a copy: what the original was deliberately not given
        self._checked: list[dict[str, Any]] = []  # the options of each group when they were last checked
        given: Any = parameters if isinstance(parameters, Parameter | set | frozenset) else list(parameters)
        if isinstance(given, list) and given and isinstance(given[0], Mapping):
            for group in given:
                self.add_param_group(group)
        elif isinstance(given, list) and not given:
            raise InputError("the optimizer got no parameters")
        else:
            self.add_param_group({"params": given})
        Optimizer._living.add(self)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds a group to be updated from now on: {"params": [...]} and any options that differ from the defaults."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError("a group of parameters is a dict with the key 'params'")
        unknown = sorted(set(group) - {"params", *self.defaults})
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}: expected one of params, {', '.join(self.defaults)}")
        parameters = ordered(group["params"], "the optimizer")
        seen = {id(parameter) for parameter in self.parameters}
        for parameter in parameters:
            if id(parameter) in seen:
                raise InputError(f"the optimizer got {parameter.name} twice")
            seen.add(id(parameter))
        own = {**self.defaults, **group, "params": tuple(parameters)}
        self.require_options(own)
        self.param_groups.append(own)
        self.parameters += parameters
        self._parts += self._parts_of(own)
        self._partial = [parameter for parameter in self.parameters if parameter.is_partial]
        if self._newcomers is None:
            self._newcomers = Newcomers(self.parameters, self._is_given_to_another, self._left_out)
        self._newcomers.give(parameters)
        self._arrange()

    def _parts_of(self, group: Options) -> list[Part]:
        by_dtype: dict[np.dtype, list[Parameter]] = {}
        for parameter in group["params"]:
            by_dtype.setdefault(parameter.data.dtype, []).append(parameter)
        return [Part(group, members, self.state_of(group)) for members in by_dtype.values()]

    def _is_given_to_another(self, parameter: Parameter) -> bool:
        others = [other for other in Optimizer._living if other is not self]
        return any(parameter is one for other in others for one in other.parameters)

    # -- what a rule defines ---------------------------------------------------------------------------------------
    def require_options(self, options: Options) -> None:
        """InputError for options of a group that are out of range."""
        lr = options["lr"]
        if not callable(lr):
            valid = is_number(lr) and lr >= 0 and math.isfinite(lr)
            require("lr", lr, valid, "a finite number, at least 0")

    def state_of(self, options: Options) -> tuple[str, ...]:
        """The names of the state arrays needed to update a group with these options."""
        return ()

    def _update(
        self,
        options: Options,
        rate: float,
        updates: int,
        weights: np.ndarray,
        gradient: np.ndarray,
        *state: np.ndarray,
    ) -> None:
        """One update, in place, of flat weights that have had this many `updates` before."""
        raise TypeError(f"{type(self).__name__} defines no update rule")

    def _magnitudes(
        self,
        number: int,
        options: Options,
        rate: float,
        weights: np.ndarray,
        gradient: np.ndarray,
        state: dict[str, np.ndarray],
    ) -> None:
        """After an update of parameter `number`, the same rule in place on magnitudes: all signs are positive.

        Magnitudes are sums of the magnitudes of all that was added up, against which rounding is judged
        (`equivalence.magnitudes`). Of a rule that does not define this they are measured.
        """
        raise TypeError(f"{type(self).__name__} defines no magnitudes")

    # -- an update -------------------------------------------------------------------------------------------------
    @property
    def rate(self) -> float:
        """The learning rate of the next update, if it is the same in all groups."""
        return self.rate_of({"lr": self.lr})

    def rate_of(self, options: Options) -> float:
        """The learning rate of a group's next update; InputError if it is negative or not finite."""
        lr = options["lr"]
        rate = float(lr(self.updates) if callable(lr) else lr)  # no NumPy number: it would decide the type of a product
        return require("lr", rate, rate >= 0 and math.isfinite(rate), "a finite number, at least 0")

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the state arrays of all groups."""
        return tuple(dict.fromkeys(name for group in self.param_groups for name in self.state_of(group)))

    def zero_grad(self) -> None:
        """Clears the gradients (nothing is overwritten until the next backward)."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, scale: float = 1.0) -> None:
        """Updates every parameter that has a gradient, using `scale` times it. The gradients do not change."""
        for part, rate, stretch, pieces in self._work():
            options = part.group
            state = [part.state[name][stretch.where] for name in self.state_of(options)]
            for piece in pieces:
                arrays = (stretch.weights[piece.where], piece.gradient, *(array[piece.where] for array in state))
                if scale == 1:
                    self._update(options, rate, piece.updates, *arrays)
                else:
                    self._update_scaled(options, rate, piece.updates, scale, arrays)
                stretch.count(piece)
        self.updates += 1

    def _work(self) -> list[tuple[Part, float, Stretch, list[Piece]]]:
        """What is to be updated at which rate; first makes sure that everything that was set up still holds."""
        if self._newcomers is None:  # of a copy, whose network may have been copied after it
            self._newcomers = Newcomers(self.parameters, self._is_given_to_another, self._left_out)
        for parameter in self._partial:
            if parameter.grad is not None and parameter.grad.flags.writeable:  # a sum over the ranks is read-only
                raise InputError(
                    f"the gradient of {parameter.name} is a summand on each rank of the model axis and was not summed: "
                    "call all_reduce() of a GradientAllReduce of these parameters before step()"
                )
        for parameter in self._newcomers.found():
            raise InputError(
                f"{parameter.name} has a gradient but is in no optimizer: it was added to the network, or unfrozen, "
                "after this optimizer was made; give it to add_param_group or to another optimizer, or freeze it"
            )
        if self.param_groups != self._checked:
            self._check_options()
        for _ in range(2):
            rates = [self.rate_of(part.group) for part in self._parts]
            work = [(p, rate, one, one.gradients()) for p, rate in zip(self._parts, rates) for one in p.stretches]
            found = [(p, rate, one, pieces) for p, rate, one, pieces in work if pieces is not None]
            if len(found) == len(work):
                break
            self._arrange()
        return found

    def _check_options(self) -> None:
        """After options were changed: are they possible, and is there the state that they need?"""
        for group in self.param_groups:
            if group.keys() != {"params", *self.defaults}:
                raise InputError(f"a group has {', '.join(group)}: expected only params, {', '.join(self.defaults)}")
            self.require_options(group)
        if [p for group in self.param_groups for p in group["params"]] != self.parameters:
            raise InputError("the params of a group were changed: give further parameters to add_param_group")
        for part in self._parts:
            part.group = self._group_of(part)
            part.require_state(self.state_of(part.group))
        self._checked = [dict(group) for group in self.param_groups]

    def _group_of(self, part: Part) -> dict[str, Any]:
        """The group as it is now: its dict may have been replaced."""
        return next(g for g in self.param_groups if any(p is part.parameters[0] for p in g["params"]))

    def _arrange(self) -> None:
        """Lays out anew what is no longer where it was."""
        for parameter in self.parameters:
            data = parameter.data
            if not isinstance(data, np.ndarray) or data.dtype.kind != "f" or data.shape != parameter.shape:
                found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
                raise InputError(
                    f"{parameter.name} has data that is {found}: expected floats of shape {parameter.shape}"
                )
        changed = [p for part in self._parts for p in part.parameters if p.data.dtype != part.dtype]
        if changed and any(n for part in self._parts for n in part.updates()):
            raise InputError(
                f"{changed[0].name} is {changed[0].data.dtype} now, but was not when this optimizer made its first "
                "update: make a new optimizer"
            )
        if changed:
            self._parts = [part for group in self.param_groups for part in self._parts_of(group)]
        for part in self._parts:
            part.arrange()

    def _update_scaled(
        self, options: Options, rate: float, updates: int, scale: float, arrays: tuple[np.ndarray, ...]
    ) -> None:
        """Block by block, as the gradients may be read-only and a scaled copy is to stay in the cache."""
        scratch = np.empty(min(len(arrays[0]), BLOCK), arrays[0].dtype)

        def block(weights: np.ndarray, gradient: np.ndarray, *state: np.ndarray) -> None:
            scaled = np.multiply(gradient, scale, out=scratch[: len(gradient)])
            self._update(options, rate, updates, weights, scaled, *state)

        in_blocks(block, arrays)

    # -- state by parameter ----------------------------------------------------------------------------------------
    def options_of(self) -> list[dict[str, Any]]:
        """The options of each parameter's group, in the order of `parameters`."""
        return [group for group in self.param_groups for _ in group["params"]]

    def updates_of(self) -> list[int]:
        """The number of updates of each parameter, in the order of `parameters`: those in which it had a gradient."""
        return self._by_parameter([part.updates() for part in self._parts])

    def _by_parameter(self, by_part: list[list[Any]]) -> list[Any]:
        found = {id(p): value for part, own in zip(self._parts, by_part) for p, value in zip(part.parameters, own)}
        return [found[id(parameter)] for parameter in self.parameters]

    def _state_views(self) -> list[dict[str, np.ndarray]]:
        return self._by_parameter([part.views() for part in self._parts])

    def state_dict(self) -> dict[str, Any]:
        """{"rule", "updates": n, "updates_of": [n per parameter], "state": [{name: array} per parameter]}: copies.

        Parameters are in the order given. Options are not included.
        """
        return {
            "rule": self.rule,
            "updates": self.updates,
            "updates_of": self.updates_of(),
            "state": [{name: array.copy() for name, array in state.items()} for state in self._state_views()],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restores the state `saved` by `state_dict` for the same parameters under the same rule.

        Raises InputError, and changes nothing, for the state of another rule, or for other names, shapes or dtypes.
        """
        missing = sorted({"rule", "updates", "updates_of", "state"} - set(saved))
        if missing:
            raise InputError(f"optimizer state: {missing[0]!r} is missing")
        if saved["rule"] != self.rule:
            raise InputError(f"optimizer state of {saved['rule']!r}: expected that of {self.rule!r}")
        for part in self._parts:
            part.require_state(self.state_of(part.group))
        own = self._state_views()
        for what in ("state", "updates_of"):
            if len(saved[what]) != len(own):
                has, needs = (number_of(len(of), "parameter") for of in (saved[what], own))
                raise InputError(f"optimizer state of {has} for {needs}")
        for count in (saved["updates"], *saved["updates_of"]):
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
                raise InputError(
                    f"optimizer state: the number of updates is {count!r}; expected a whole number, at least 0"
                )
        for parameter, state, given in zip(self.parameters, own, saved["state"]):
            if set(given) != set(state):
                names = [", ".join(sorted(found)) or "nothing" for found in (given, state)]
                raise InputError(f"optimizer state of {parameter.name}: has {names[0]}, expected {names[1]}")
            for name, array in state.items():
                found = np.asarray(given[name])
                if (found.shape, found.dtype) != (array.shape, array.dtype):
                    raise InputError(
                        f"optimizer state of {parameter.name}: {name} is {found.dtype} {found.shape}, "
                        f"expected {array.dtype} {array.shape}"
                    )
        self.updates = int(saved["updates"])
        counts = {id(parameter): int(n) for parameter, n in zip(self.parameters, saved["updates_of"])}
        for part in self._parts:
            part.set_updates([counts[id(parameter)] for parameter in part.parameters])
        for state, given in zip(own, saved["state"]):
            for name, array in state.items():
                array[...] = given[name]

    # a copy has its own flat arrays, and is an optimizer of the copied parameters
    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_parts"}
        left_out = self._left_out if self._newcomers is None else self._newcomers.left_out
        afresh = {"_newcomers": None, "squares_of": squares_of, "whole_squares": as_they_are}
        return {**state, **afresh, "_left_out": left_out, "_saved": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_saved")
        vars(self).update(state)
        self._parts = [part for group in self.param_groups for part in self._parts_of(group)]
        self._arrange()
        self.load_state_dict(saved)
        Optimizer._living.add(self)

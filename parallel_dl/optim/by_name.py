"""The update rules by name, as the command line asks for them; what a rule takes is read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from parallel_dl import from_file
from parallel_dl.errors import InputError, cut
from parallel_dl.optim.adam import Adam, AdamW
from parallel_dl.optim.lars import LARS
from parallel_dl.optim.optimizer import Optimizer, Parameters
from parallel_dl.optim.rates import RatePolicy
from parallel_dl.optim.sgd import SGD

RULES: dict[str, type[Optimizer]] = {rule.rule: rule for rule in (SGD, Adam, AdamW, LARS)}
"""name -> rule; a new rule only needs an entry here"""
_RATE = 0.05  # for a rule that says none
FLAGS = ("momentum", "weight_decay", "nesterov")
"""options that a rule has from flags of these names, if its constructor takes them"""


def rule_named(name: str) -> Callable[..., Optimizer]:
    """The rule of that name, or FILE.py:NAME from a user's own file; InputError for an unknown name."""
    return from_file.find("`optimizer`", name, RULES)


def default_rate(name: str) -> float | None:
    """The learning rate in the rule's signature, if there is one."""
    rule = rule_named(name)
    return default_of(rule, next(iter(list(_parameters(rule))[1:]), ""))


def default_of(rule: Callable[..., Optimizer], option: str) -> float | None:
    """The number that an option has unless it is given; None where there is none, or no such option."""
    parameter = _parameters(rule).get(option)
    return float(parameter.default) if parameter and isinstance(parameter.default, int | float) else None


def options_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options for the rule's constructor: what was given, in place of what is usual for it.

    Raises InputError for an option that the rule does not take, which names the shipped rules that do.
    """
    rule = rule_named(name)
    for option, value in given.items():
        if not takes(rule, option):
            owners = [owner for owner, other in RULES.items() if takes(other, option)]
            said = f"is not an option of `optimizer` {cut(name)}; it is one of {', '.join(owners)}"
            raise InputError(said, option, None if value is True else value)
    return {**_taken(rule, "usual"), **given}


def verified(name: str) -> tuple[float, dict[str, Any]]:
    """The learning rate and the options with which `verify` compares layouts."""
    rule = rule_named(name)
    options = {"lr": default_rate(name) or _RATE, **_taken(rule, "verified")}
    return options.pop("lr"), options


def _taken(rule: Callable[..., Optimizer], which: str) -> dict[str, Any]:
    return {key: value for key, value in getattr(rule, which, {}).items() if takes(rule, key)}


def takes(rule: Callable[..., Optimizer], option: str) -> bool:
    """Whether the rule's constructor takes this option."""
    parameters = _parameters(rule)
    return option in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def make(name: str, parameters: Parameters, lr: float | RatePolicy, **options: Any) -> Optimizer:
    """Makes the optimizer of that name, as NAME(parameters, lr, **options); a user's own must be an `Optimizer`."""
    return from_file.call("`optimizer`", name, rule_named(name), parameters, lr, returns=Optimizer, **options)


def _parameters(rule: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(rule).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return {}

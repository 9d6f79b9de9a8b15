"""Copies of a network and its loss that share nothing with them, down to what functions have kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor
from parallel_dl.nn import Module

_OF_EVERY_MODULE = vars(Module())
_LIBRARIES = ("parallel_dl.", "numpy.")  # their functions know no network of the user's


def copied(network: Module, loss: Any) -> tuple[Module, Any]:
    """Copies of both that share nothing, not even what hooks, functions that are attributes, and the loss have kept.

    If the loss reaches the network through a global variable, its copy has a variable of its own, which holds the copy
    of the network. What cannot be copied, such as an open file, is shared after all.
    """
    memo: dict[int, Any] = {}
    try:
        made, its_loss = copy.deepcopy((network, loss), memo)
    except Exception:  # some attribute of a user's own layer: which of them?
        memo = {id(value): value for value in (*_attributes(network), loss) if not _can_be_copied(value)}
        made, its_loss = copy.deepcopy((network, loss), memo)
    for _, module in made.named_modules():
        for hooks in (module._before_forward, module._after_forward):
            hooks[:] = [_with_its_own(hook, memo) for hook in hooks]
        for name, value in vars(module).items():
            if isinstance(value, FunctionType):
                module.__dict__[name] = _with_its_own(value, memo)
    return made, _with_its_own(its_loss, memo)


def _attributes(network: Module) -> Iterator[Any]:
    """The attributes of the network's modules, except those that every module has."""
    for _, module in network.named_modules():
        yield from (value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)


def _can_be_copied(value: Any) -> bool:
    if isinstance(value, Module):
        return True
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True


def _with_its_own(function: Any, memo: dict[int, Any]) -> Any:
    """A function with copies of its defaults, of what it closes over, and of globals that lead to what was copied.

    Anything else stays as it is. A method already belongs to the copied object, but its globals are copied, too.
    """
    if id(function) in memo:
        return memo[id(function)]
    if isinstance(function, MethodType):
        return MethodType(_with_its_own(function.__func__, memo), function.__self__)
    if isinstance(function, partial):
        return partial(_with_its_own(function.func, memo), *function.args, **function.keywords)
    if not isinstance(function, FunctionType):
        call = type(function).__call__ if callable(function) else None
        return MethodType(_with_its_own(call, memo), function) if _leads_to(call, memo) else function
    leads = {name: value for name, value in _globals_of(function).items() if _leads_to(value, memo)}
    if not (leads or function.__closure__ or function.__defaults__):
        return function

    def own(value: Any) -> Any:
        if isinstance(value, FunctionType):
            return value if value is function else _with_its_own(value, memo)
        try:
            return copy.deepcopy(value, memo)
        except Exception:
            return value

    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(CellType(own(cell.cell_contents)))
        except ValueError:  # it is not filled yet
            cells.append(CellType())
    defaults = tuple(own(value) for value in function.__defaults__ or ()) or None
    variables = dict(function.__globals__) if leads else function.__globals__
    made = FunctionType(function.__code__, variables, function.__name__, defaults, tuple(cells))
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    if leads:
        memo[id(function)] = made  # functions may call each other
        variables.update({name: own(value) for name, value in leads.items()})
    return made


def _globals_of(function: FunctionType) -> dict[str, Any]:
    """The global variables that its code names, or the code of functions inside it."""
    found: dict[str, Any] = {}
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        found |= {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def _leads_to(value: Any, memo: dict[int, Any]) -> bool:
    """Whether a value is a module or tensor that was copied, or holds one, or is a function that names one."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Module | Tensor):
            if id(value) in memo:
                return True
        elif isinstance(value, FunctionType):
            if not (value.__module__ or "").startswith(_LIBRARIES):
                waiting += _globals_of(value).values()
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, MethodType):
            waiting += [value.__func__, value.__self__]
        elif isinstance(value, partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif not isinstance(value, type | ModuleType | np.ndarray):
            waiting += vars(value).values() if hasattr(value, "__dict__") else ()
    return False

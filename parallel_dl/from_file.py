"""FILE.py:NAME instead of a name: a network, schedule, optimizer, loss or data set from the user's own file."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from parallel_dl.errors import InputError, cut, named, shown, unknown_name
from parallel_dl.files import MOST_TEXT, one_line, require_regular

_OWN = re.compile(r"(.*\.py):(.*)", re.DOTALL)
_loaded: dict[str, ModuleType] = {}  # by absolute path: a file is run once, also when several flags name it


def is_own(name: str) -> bool:
    """Whether it is written FILE.py:NAME."""
    return _OWN.fullmatch(name) is not None


def find(what: str, name: str, registry: Mapping[str, Any]) -> Any:
    """What `registry` has under the name; for FILE.py:NAME, the function or class NAME of that file.

    Raises InputError, one line that begins with `what` and the name: an unknown name (with the nearest one), a file
    that cannot be read, an exception while it is run (with its line), no such name in it, and one that is not callable.
    """
    if name in registry:
        return registry[name]
    found = _OWN.fullmatch(name)
    if found is None and (name.endswith(".py") or os.sep in name):
        raise InputError(f"unknown {what} {shown(name)}: to use your own, give FILE.py:NAME, with its name in the file")
    if found is None:
        raise unknown_name(what, name, registry)
    own = f"{what} {cut(name)}"
    try:
        require_regular(os.path.abspath(found[1]), "a Python file", MOST_TEXT)
    except InputError as error:
        raise InputError(f"{own}: {error.marked}") from None
    try:
        module = _module(found[1])
    except (Exception, SystemExit) as error:
        raise failure(own, found[1], error) from error
    if found[2] not in vars(module):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{own}: {unknown_name('name', found[2], names).marked}")
    value = vars(module)[found[2]]
    if not callable(value):
        raise InputError(f"{own}: is of type {type(value).__name__}; expected a function or a class")
    return value


def call(
    what: str, name: str, function: Callable[..., Any], *arguments: Any, returns: type, **named_arguments: Any
) -> Any:
    """function(*arguments, **named_arguments), where `find(what, name, ...)` has given the function.

    Of a user's own file it has to return one of the type `returns`. Raises InputError, one line with the file and the
    line number, for an exception in it and for something else returned.
    """
    found = _OWN.fullmatch(name)
    if found is None:
        return function(*arguments, **named_arguments)
    with telling(what, name):
        value = function(*arguments, **named_arguments)
    if not isinstance(value, returns):
        where = _line_of(function)
        raise InputError(
            f"{what} {cut(name)}: {where}returns a value of type {type(value).__name__}; expected {returns.__name__}"
        )
    return value


@contextmanager
def telling(what: str, name: str) -> Iterator[None]:
    """What is raised inside is, for FILE.py:NAME, an InputError: one line with `what`, the name and the place."""
    found = _OWN.fullmatch(name)
    if found is None:
        yield
        return
    own = f"{what} {cut(name)}"
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, InputError) and error.marked.startswith(own):
            raise
        raise failure(own, found[1], error) from error


def _module(file: str) -> ModuleType:
    path = os.path.abspath(file)
    if path not in _loaded:
        spec = importlib.util.spec_from_file_location(path, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        folder = os.path.dirname(path)
        if folder not in sys.path:
            sys.path.append(folder)  # for the files beside it that it imports
        sys.modules[path] = module  # by its path, which is the same on all ranks: they can send what it defines
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path]
            raise
        _loaded[path] = module
    return _loaded[path]


def failure(own: str, file: str, error: Exception | SystemExit) -> InputError:
    """What to say of an exception in the user's file: its last line there."""
    path = os.path.abspath(file)
    if isinstance(error, SyntaxError) and error.filename is not None:
        where, said = (error.filename, error.lineno), f"{type(error).__name__}: {error.msg}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [(frame.filename, frame.lineno) for frame in frames if frame.filename == path]
        where = inside[-1] if inside else (path, None)
        told = getattr(error, "headline", error)  # of several lines, where the first says it all
        said = error.marked if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(told)}"
        if isinstance(error, InputError) and not inside:  # the line says all that is known
            return InputError(f"{own}: {said}")
    there = named(file if where[0] == path else where[0])
    at = there if where[1] is None else f"{there}, line {where[1]}"
    return InputError(f"{own}: {at}: {said}")


def _line_of(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return "" if code is None else f"line {code.co_firstlineno}: "

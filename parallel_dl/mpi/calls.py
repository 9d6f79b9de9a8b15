"""Calls: the one path of everything that is passed to another rank. It is announced, made, counted and timed.

A collective is one function of a communicator, declared once:

    @collective
    def all_reduce(self, array: Array, op: str = "sum") -> Array: ...

It may stand in the class or in a user's own file. What the ranks compare in checked mode follows from its signature
(`facts`), what the ledger counts from the calls of the transport that it makes (`transport`). Observers see every call
on its way; without one, a call is nothing but the call of the function.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from parallel_dl.errors import one_of, shown
from parallel_dl.mpi.facts import Fact, Parameters, nothing
from parallel_dl.mpi.pending import Pending
from parallel_dl.mpi.transport import Passed

P = ParamSpec("P")
R = TypeVar("R")

COLLECTIVE, MESSAGE, WAIT = "collective", "message", "wait"


class Caller:
    """What observers know of the communicator whose calls they see."""

    mpi: Any
    rank: int
    size: int
    name: str
    axis: str
    """the mesh axis it runs along, "world" for none of them"""
    layer: str
    """the layer it is used for: see `labelled`"""
    direction: str | None
    """the pass, "forward" or "backward"; None: determined at the time of the call"""
    watchers: tuple[Observer, ...]
    """the observers that see its calls"""

    def announce(self, call: str, *facts: Any) -> None:
        """Call this before a collective written with raw MPI calls, to show it to the observers; makes no call."""
        if self.watchers:
            said = [str(fact) for fact in facts]
            _observed(Call(self, call, COLLECTIVE, {}, lambda: said, lambda: None))


@dataclasses.dataclass(eq=False)
class Call:
    """One call on its way: of which function, with which arguments, and what came of it.

    An observer may exchange arguments before it is made, and the result after.
    """

    comm: Caller
    name: str
    kind: str
    """COLLECTIVE, MESSAGE (from one rank to another), or WAIT (for what was started)"""
    arguments: dict[str, Any]
    say: Callable[[], list[str]]
    make: Callable[[], Any]
    """makes it, with the arguments as they are then"""
    result: Any = None
    failed: bool = False
    """whether it has raised an error"""

    @functools.cached_property
    def facts(self) -> list[str]:
        """What it says of its arguments; for a collective what must be the same on all ranks."""
        return self.say()


class Observer:
    """Sees the calls of communicators made with it, and of those derived from them.

    A subclass defines some of these methods. `call` has `comm`, `name`, `arguments`, `facts` (their description, which
    checked mode compares) and, after the call, `result` and `failed`.
    """

    is_listening = True
    """whether it wants to hear what is passed"""

    def begin(self, call: Call) -> None:
        """Called before a call is made, which is not made if this raises."""

    def end(self, call: Call) -> None:
        """Called after a call, even if it failed."""

    def passed(self, comm: Caller, passed: Passed) -> None:
        """Called after something was `passed` to other ranks during a call: its `messages`, `values` and `bytes`."""


class _Declared:
    """A function that was declared to be a call."""

    def __init__(self, function: Callable, kind: str, name: str | None, hint: str, facts: dict[str, Fact]) -> None:
        self.function = function
        self.name = name or function.__name__
        self._kind, self._hint, self._facts = kind, hint, facts
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = inspect.signature(function).parameters
        if any(parameter.kind is not plain for parameter in parameters.values()):
            raise TypeError(f"{self.name}: the parameters of a call have a name each, and may be given by position")
        if not parameters:
            raise TypeError(f"{self.name}: the first parameter of a call is the communicator, and it has none")
        self._comm, *self._names = parameters
        self._require_facts(parameters)

    def _require_facts(self, parameters: Mapping[str, inspect.Parameter]) -> None:
        """TypeError unless it is known of each argument what the ranks compare of it."""
        for name, fact in self._facts.items():
            if name not in self._names:
                raise TypeError(
                    f"{self.name}: is declared with {name!r}, which is not an argument; {one_of(self._names)}"
                )
            if not callable(fact):
                raise TypeError(
                    f"{self.name}: {name}={shown(fact)} is not a fact; expected a function like those of mpi.facts"
                )
        for name in self._names:
            if parameters[name].annotation is inspect.Parameter.empty and name not in self._facts:
                raise TypeError(
                    f"{self.name}: argument {name} has no annotation, by which the ranks compare it; expected an "
                    f"annotation, like Array or int, or own=({name!r},) if it may differ between ranks"
                )

    @functools.cached_property
    def _parameters(self) -> Parameters:
        parameters = inspect.signature(self.function, eval_str=True).parameters
        return Parameters({name: parameters[name].annotation for name in self._names}, self._facts)

    def observe(self, comm: Any, *arguments: Any) -> Any:
        """Makes the call under the eyes of the communicator's observers."""
        self.refuse(comm, *arguments)
        given = dict(zip(self._names, arguments))
        say, make = lambda: self._parameters.facts(given, comm.rank), lambda: self.function(comm, **given)
        return _observed(Call(comm, self.name, self._kind, given, say, make))

    def refuse(self, comm: Any, *arguments: Any) -> None:
        """TypeError, in one line, if one of the arguments cannot be meant."""
        wrong = self._parameters.mistake(dict(zip(self._names, arguments)))
        if wrong is not None:
            raise TypeError(f"{self.name}({', '.join(self._names)}): {wrong}{self._hint}") from None

    def made(self) -> Callable:
        """The function to call: with observers `observe`, else at once what was declared.

        Written out with the parameters of what was declared: (*arguments, **named) would cost as much again as a small
        call of MPI.
        """
        given = ", ".join([self._comm, *self._names])
        source = f"""
def call({given}):
    if {self._comm}.watchers:
        return _observe({given})
    try:
        return _function({given})
    except Exception:
        _refuse({given})
        raise
"""
        made: dict[str, Any] = {"_function": self.function, "_observe": self.observe, "_refuse": self.refuse}
        file = os.path.join(os.path.dirname(__file__), f"<call of {self.name}>")  # to tracebacks a file of ours
        exec(compile(source, file, "exec"), made)
        made["call"].__defaults__ = self.function.__defaults__
        return functools.wraps(self.function)(made["call"])


def _observed(call: Call) -> Any:
    """Makes a call under the eyes of its communicator's observers."""
    begun: list[Observer] = []
    try:
        for observer in call.comm.watchers:
            observer.begin(call)
            begun.append(observer)
        call.result = call.make()
        if isinstance(call.result, Pending):
            call.result._watched = functools.partial(_wait, call)
    except BaseException:
        call.failed = True
        raise
    finally:
        for observer in reversed(begun):
            observer.end(call)
    return call.result


def _wait(started: Call, complete: Callable[[], Any]) -> Any:
    name = f"wait of {started.name}"
    return _observed(Call(started.comm, name, WAIT, started.arguments, lambda: started.facts, complete))


@overload
def collective(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def collective(
    *, name: str | None = ..., own: tuple[str, ...] = ..., **facts: Fact
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def collective(function: Any = None, /, *, name: str | None = None, own: tuple[str, ...] = (), **facts: Fact) -> Any:
    """Declares a function that all ranks call together: its first argument is the communicator.

        @mpi.collective
        def largest(comm, array: np.ndarray, count: int = 1) -> np.ndarray:
            return np.sort(comm.all_gather(array))[-count:]

    In checked mode they compare its `name` (by default the function's) and its arguments, by their annotations: of
    `str`, `int`, `float` and `bool` the value, of `np.ndarray` dtype and shape, of `Sequence[int]`, `tuple[int, ...]`
    and `Sequence[slice]` the items; each also with `| None`. Arguments with any other annotation, such as Any, are not
    compared, nor are those that `own` names, which each rank has for itself. `facts`, under an argument's name, say
    what else is to be compared (`parallel_dl.mpi.facts`). TypeError for an argument without an annotation that is in
    neither, for an unknown name in these, and when called for an argument that by its annotation cannot be meant.
    """
    if isinstance(own, str):
        raise TypeError(f"collective: own is {own!r}; expected a tuple of names, ({own!r},)")
    if function is None:
        return functools.partial(_declared, kind=COLLECTIVE, name=name, facts=dict.fromkeys(own, nothing) | facts)
    return _declared(function, COLLECTIVE)


def message(hint: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declares a function of a communicator to be a message from one rank to another; `hint` ends its TypeErrors."""
    return functools.partial(_declared, kind=MESSAGE, hint=hint)


def _declared(
    function: Callable, kind: str, name: str | None = None, hint: str = "", facts: dict[str, Fact] | None = None
) -> Callable:
    return _Declared(function, kind, name, hint, facts or {}).made()

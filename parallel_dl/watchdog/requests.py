"""mpi4py's requests, which know what they wait for, and what was started and is not complete yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from parallel_dl.watchdog.record import RECEIVE, Group, Started, Told, begin, caller, over, this_rank
from parallel_dl.watchdog.record import variables_of_caller as variables

buffers: Any = None
"""the module of that name, in checked mode: it needs NumPy, which the launcher goes without"""


def brief(thing: Any) -> Any:
    """What is kept of an argument: an array's type and shape, not the array."""
    try:
        return Array(thing.dtype, thing.shape)
    except AttributeError:
        return type(thing)


class Array(NamedTuple):
    """What is kept of an array."""

    dtype: Any
    shape: tuple[int, ...]


def start(MPI: Any, request: Any, waited: Told, guard: Any = None) -> Any:
    """Gives a request that knows what it waits for."""
    this_rank.number += 1
    this_rank.call, this_rank.place = waited[1], caller(3)
    request = MPI.Request(request)
    request.started = started = Started(waited, this_rank.place)
    started.guard = guard
    this_rank.started[id(started)] = started
    return request


def count(group: Group, source: int, tag: int, status: Any, MPI: Any) -> None:
    """A message has been received."""
    if source == MPI.PROC_NULL:
        return
    key = (source, tag) if source >= 0 and tag >= 0 else (status.Get_source(), status.Get_tag())
    group.received[key] = group.received.get(key, 0) + 1


def _finish(started: Started | None, status: Any, MPI: Any) -> None:
    """A request is complete; status: of which message."""
    if started is None or started.is_done:
        return
    started.is_done = True
    this_rank.started.pop(id(started), None)
    kind, _, group, source, tag, _, _ = started.waited
    if kind == RECEIVE:
        count(group, source, tag, status, MPI)
    if started.guard is not None:
        guard, started.guard = started.guard, None
        guard.release()


def _look(waited_for: list[Started]) -> None:
    """In checked mode, before a wait: has the program read what has not come yet?"""
    if buffers is not None and any(isinstance(one.guard, buffers.ReceivedArray) for one in waited_for):
        guards = [one.guard for one in this_rank.started.values() if isinstance(one.guard, buffers.ReceivedArray)]
        buffers.require_unread(variables(3), guards)


def _under_way(requests: Any) -> list[Any]:
    return [one.started for one in requests if getattr(one, "started", None) is not None and not one.started.is_done]


def _one(MPI: Any, Base: Any, name: str, tests: bool) -> Callable:
    """Wait or test; what the base returns is true, or starts with true, when it is complete."""
    base = getattr(Base, name)

    def call(self: Any, status: Any = None) -> Any:
        started = self.started
        if started is None or started.is_done:
            return base(self, status)
        _look([started])
        if status is None and started.has_any:
            status = MPI.Status()
        if tests:
            result = base(self, status)
            if not (result[0] if isinstance(result, tuple) else result):
                return result
        else:
            begin(name, started.waited)
            try:
                result = base(self, status)
            finally:
                over()
        _finish(started, status, MPI)
        return result

    return call


def _all_of(MPI: Any, Base: Any, name: str, tests: bool) -> Any:
    base = getattr(Base, name)

    def call(cls: Any, requests: Any, statuses: Any = None) -> Any:
        requests = list(requests)
        _look(_under_way(requests))
        started = [getattr(one, "started", None) for one in requests]
        statuses = [] if statuses is None else statuses
        if tests:
            result = base(requests, statuses)
            if not (result[0] if isinstance(result, tuple) else result):
                return result
        else:
            begin(name, [one.waited for one in _under_way(requests)])
            try:
                result = base(requests, statuses)
            finally:
                over()
        for one, status in zip(started, statuses):
            _finish(one, status, MPI)
        return result

    return classmethod(call)


def _any_of(MPI: Any, Base: Any, name: str, tests: bool) -> Any:
    base = getattr(Base, name)

    def call(cls: Any, requests: Any, status: Any = None) -> Any:
        requests = list(requests)
        _look(_under_way(requests))
        started = [getattr(one, "started", None) for one in requests]
        status = MPI.Status() if status is None else status
        if not tests:
            begin(name, [one.waited for one in _under_way(requests)])
            this_rank.one_is_enough = True
        try:
            result = base(requests, status)
        finally:
            over()
        index = result[0] if isinstance(result, tuple) else result
        if index is not None and index >= 0:
            _finish(started[index], status, MPI)
        return result

    return classmethod(call)


def _some_of(MPI: Any, Base: Any, name: str, tests: bool) -> Any:
    base = getattr(Base, name)

    def call(cls: Any, requests: Any, statuses: Any = None) -> Any:
        requests = list(requests)
        _look(_under_way(requests))
        started = [getattr(one, "started", None) for one in requests]
        statuses = [] if statuses is None else statuses
        if not tests:
            begin(name, [one.waited for one in _under_way(requests)])
            this_rank.one_is_enough = True
        try:
            result = base(requests, statuses)
        finally:
            over()
        indices = result[0] if isinstance(result, tuple) else result
        for index, status in zip(indices or (), statuses):
            _finish(started[index], status, MPI)
        return result

    return classmethod(call)


def _asked(Base: Any, name: str) -> Callable:
    """Asks whether it is complete, which it then is for the program, too."""
    base = getattr(Base, name)

    def call(self: Any, *given: Any, **named: Any) -> Any:
        is_complete = base(self, *given, **named)
        if is_complete and self.started is not None and self.started.guard is not None:
            guard, self.started.guard = self.started.guard, None
            guard.release()
        return is_complete

    return call


def _dropped(Base: Any, name: str) -> Callable:
    """After Cancel or Free nobody knows what becomes of it."""
    base = getattr(Base, name)

    def call(self: Any) -> None:
        if self.started is not None and not self.started.is_done:
            self.started.is_done = True
            this_rank.started.pop(id(self.started), None)
            self.started.waited[2].is_exact = False
        base(self)

    return call


def request_class(MPI: Any) -> Any:
    """A class of requests that say what they wait for."""
    Base = MPI.Request

    class OfAnyKind(type):
        def __instancecheck__(cls, thing: Any) -> bool:
            return isinstance(thing, Base)

    calls = {name: _one(MPI, Base, name, tests=False) for name in ("Wait", "wait")}
    calls |= {name: _one(MPI, Base, name, tests=True) for name in ("Test", "test")}
    for made, kind in ((_all_of, "all"), (_any_of, "any"), (_some_of, "some")):
        for name in (f"Wait{kind}", f"wait{kind}"):
            calls[name] = made(MPI, Base, name, tests=False)
        for name in (f"Test{kind}", f"test{kind}"):
            calls[name] = made(MPI, Base, name, tests=True)
    calls |= {name: _asked(Base, name) for name in ("Get_status", "get_status")}
    calls |= {name: _dropped(Base, name) for name in ("Cancel", "cancel", "Free", "free")}
    return OfAnyKind("Request", (Base,), {"started": None, "__module__": Base.__module__, **calls})

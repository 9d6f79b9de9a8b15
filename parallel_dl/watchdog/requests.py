"""mpi4py's requests, which know what they wait for, and what was started and is not complete yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parallel_dl.watchdog.mismatch import Compared
from parallel_dl.watchdog.record import RECEIVE, Group, Started, Told, begin, caller, counting, over, this_rank
from parallel_dl.watchdog.record import variables_of_caller as variables

buffers: Any = None
"""the module of that name, in checked mode: it needs NumPy, which the launcher goes without"""


_MOST = 1000  # requests under way whose arrays are kept: MPI may still write there, whoever else has let them go


def kept(thing: Any) -> Any:
    """What is kept of an argument as long as its request is not complete."""
    return thing if len(this_rank.started) < _MOST else type(thing)


def like_its_base(Base: Any, calls: dict[str, Any]) -> Any:
    """A subclass to stand in for its base: what is of the base's kind is of its kind, too."""

    class OfTheSameKind(type):
        def __instancecheck__(cls, thing: Any) -> bool:
            return isinstance(thing, Base) if cls is made else type.__instancecheck__(cls, thing)

        def __subclasscheck__(cls, other: Any) -> bool:
            return issubclass(other, Base) if cls is made else type.__subclasscheck__(cls, other)

    made = OfTheSameKind(Base.__name__, (Base,), {"__module__": Base.__module__, **calls})
    return made


def start(MPI: Any, request: Any, waited: Told, compared: Compared | None = None, guard: Any = None) -> Any:
    """A request that knows what it waits for.

    `compared`: whether ranks make the same collective; `guard`: of the array, in checked mode.
    """
    here = this_rank
    here.number += 1
    here.call, here.place = waited[1], caller(3)
    request = MPI.Request(request)
    request.started = started = Started(waited, here.place, compared, guard)
    here.started[id(started)] = started
    return request


def count_sent(group: Group, dest: int, tag: int, number: int = 1) -> None:
    """A message is about to be sent; -1: it was not."""
    with counting:
        group.sent[dest, tag] = group.sent.get((dest, tag), 0) + number


def count(group: Group, source: int, tag: int, status: Any, MPI: Any) -> None:
    """A message has been received."""
    if source == MPI.PROC_NULL:
        return
    key = (source, tag) if source >= 0 and tag >= 0 else (status.Get_source(), status.Get_tag())
    with counting:
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


def _look(waited_for: list[Started | None]) -> None:
    """In checked mode, before a wait: has the program read what has not come yet?"""
    if buffers is None:
        return
    if any(one is not None and isinstance(one.guard, buffers.ReceivedArray) for one in waited_for):
        guards = [one.guard for one in this_rank.started.values() if isinstance(one.guard, buffers.ReceivedArray)]
        buffers.require_unread(variables(3), guards)


def _of(request: Any) -> Started | None:
    """What is known of a request, if it was started by a call that is looked at."""
    return getattr(request, "started", None)


def _under_way(requests: Any) -> list[Any]:
    return [one.waited for one in map(_of, requests) if one is not None and not one.is_done]


def _any_under_way(MPI: Any, requests: Any) -> list[Any]:
    """Of what one is enough: nothing is known if a request is among them that is not looked at."""
    unknown = any(_of(one) is None and one != MPI.REQUEST_NULL for one in requests)
    return [] if unknown else _under_way(requests)


def _all_alike(started: list[Started | None]) -> None:
    """Waits until all ranks have begun these collectives, and compares them."""
    for one in started:
        if one is not None and one.compared is not None:
            one.compared.wait(depth=5)


def _all_begun(started: list[Started | None]) -> bool:
    """Whether all ranks have begun these collectives; those that have are compared."""
    for one in started:
        if one is not None and one.compared is not None:
            if not one.compared.is_complete():
                return False
            one.compared.check()
    return True


def _one(MPI: Any, Base: Any, name: str, tests: bool) -> Callable:
    """Wait or test; what the base returns is true, or starts with true, when it is complete."""
    base = getattr(Base, name)

    def call(self: Any, status: Any = None) -> Any:
        started = _of(self)
        if started is None or started.is_done:
            return base(self, status)
        if buffers is not None:
            _look([started])
        if status is None and started.has_any:
            status = MPI.Status()
        if tests:
            if not _all_begun([started]):
                return False if name == "Test" else (False, None)
            result = base(self, status)
            if not (result[0] if isinstance(result, tuple) else result):
                return result
        else:
            if started.compared is not None:
                started.compared.wait()
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
        started = [_of(one) for one in requests]
        _look(started)
        statuses = [] if statuses is None else statuses
        if tests:
            if not _all_begun(started):
                return False if name == "Testall" else (False, None)
            result = base(requests, statuses)
            if not (result[0] if isinstance(result, tuple) else result):
                return result
        else:
            _all_alike(started)
            begin(name, _under_way(requests))
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
        started = [_of(one) for one in requests]
        _look(started)
        status = MPI.Status() if status is None else status
        if not tests:
            begin(name, _any_under_way(MPI, requests))
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
        started = [_of(one) for one in requests]
        _look(started)
        statuses = [] if statuses is None else statuses
        if not tests:
            begin(name, _any_under_way(MPI, requests))
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
        is_complete, started = base(self, *given, **named), _of(self)
        if is_complete and started is not None and started.guard is not None:
            guard, started.guard = started.guard, None
            guard.release()
        return is_complete

    return call


def _dropped(Base: Any, name: str) -> Callable:
    """After Cancel or Free nobody knows what becomes of it."""
    base = getattr(Base, name)

    def call(self: Any) -> None:
        started = _of(self)
        if started is not None and not started.is_done:
            started.is_done = True
            this_rank.started.pop(id(started), None)
            started.waited[2].is_exact = False
        base(self)

    return call


def request_class(MPI: Any) -> Any:
    """A class of requests that say what they wait for."""
    Base = MPI.Request

    calls = {name: _one(MPI, Base, name, tests=False) for name in ("Wait", "wait")}
    calls |= {name: _one(MPI, Base, name, tests=True) for name in ("Test", "test")}
    for made, kind in ((_all_of, "all"), (_any_of, "any"), (_some_of, "some")):
        for name in (f"Wait{kind}", f"wait{kind}"):
            calls[name] = made(MPI, Base, name, tests=False)
        for name in (f"Test{kind}", f"test{kind}"):
            calls[name] = made(MPI, Base, name, tests=True)
    calls |= {name: _asked(Base, name) for name in ("Get_status", "get_status")}
    calls |= {name: _dropped(Base, name) for name in ("Cancel", "cancel", "Free", "free")}
    return like_its_base(Base, {"started": None, **calls})

"""mpi4py's communicators and requests, with each call written down before it is made.

`wrap(MPI)` exchanges `MPI.COMM_WORLD`, `MPI.COMM_SELF` and `MPI.Request` in mpi4py's module for objects of subclasses,
and what is made from these is watched, too. Every call does what it did before. Not looked at: windows, files,
intercommunicators, persistent requests and neighbourhood collectives; who waits in one of them is taken to compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from parallel_dl.watchdog.record import (
    COLLECTIVE,
    RECEIVE,
    SEND,
    Group,
    Started,
    Waited,
    begin,
    caller,
    over,
    this_rank,
)

_SENDS = ("Send", "Ssend", "Bsend", "Rsend", "send", "ssend", "bsend")
_STARTED_SENDS = ("Isend", "Issend", "Ibsend", "Irsend", "isend", "issend", "ibsend")
_OBJECT_COLLECTIVES = (
    *("barrier", "bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce", "scan", "exscan"),
)
_COLLECTIVES = (
    *("Barrier", "Bcast", "Gather", "Gatherv", "Scatter", "Scatterv", "Allgather", "Allgatherv", "Alltoall"),
    *("Alltoallv", "Alltoallw", "Reduce", "Allreduce", "Reduce_scatter", "Reduce_scatter_block", "Scan", "Exscan"),
)
# the first of them on a communicator makes another one, for mpi4py's own use
_IN_CONTEXT = ("reduce", "allreduce", "scan", "exscan")
_MAKERS = (
    *("Clone", "Dup", "Dup_with_info", "Split", "Split_type", "Create", "Create_cart", "Create_graph"),
    *("Create_dist_graph", "Create_dist_graph_adjacent", "Sub"),
)
_UNCOUNTED = (  # their messages are not seen
    *("Isendrecv", "Isendrecv_replace", "Send_init", "Bsend_init", "Ssend_init", "Rsend_init", "Recv_init"),
    *("Psend_init", "Precv_init", "Improbe", "improbe"),
)
_SYNCHRONOUS = {"Send": "Ssend", "Rsend": "Ssend", "Isend": "Issend", "Irsend": "Issend"} | {
    "send": "ssend",
    "isend": "issend",
}

WORLD = "world"  # the key of the group of all ranks
_FINALIZE = Group("end", (), "MPI")


def is_watched(comm: Any) -> bool:
    """Whether this communicator's calls are written down."""
    return getattr(comm, "watched", None) is not None


def group_of(comm: Any) -> Group | None:
    """What is known of a communicator; None if its calls are not written down."""
    return getattr(comm, "watched", None)


def wrap(MPI: Any, synchronous: bool = False) -> None:
    """Watches mpi4py's communicators from now on; `synchronous`: each send waits for its receive."""
    if is_watched(MPI.COMM_WORLD):
        return
    classes = _classes(MPI, synchronous)
    size, rank = MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank
    for name, key, ranks in (("COMM_WORLD", WORLD, range(size)), ("COMM_SELF", f"self {rank}", (rank,))):
        plain = getattr(MPI, name)
        group = this_rank.groups[key] = Group(key, ranks, f"MPI.{name}")
        setattr(MPI, name, _watched(classes[type(plain)], plain, group))
    MPI.Request = _request_class(MPI)
    _FINALIZE.ranks = tuple(range(size))
    this_rank.groups[_FINALIZE.key] = _FINALIZE
    finalize, barrier = MPI.Finalize, MPI.Intracomm.Barrier

    def Finalize() -> None:
        _FINALIZE.collectives += 1
        begin("Finalize", Waited(COLLECTIVE, "Finalize", _FINALIZE, number=_FINALIZE.collectives))
        try:
            barrier(MPI.COMM_WORLD)  # MPI.Finalize keeps the interpreter's lock: no thread could look at it
            finalize()
        finally:
            over()

    MPI.Finalize = Finalize


def _watched(kind: Any, comm: Any, group: Group) -> Any:
    watched = comm if isinstance(comm, kind) else kind(comm)
    watched.watched = group
    return watched


def _classes(MPI: Any, synchronous: bool) -> dict[Any, Any]:
    """mpi4py's class -> ours."""
    classes: dict[Any, Any] = {}
    for kind in (MPI.Intracomm, MPI.Cartcomm, MPI.Graphcomm, MPI.Distgraphcomm):
        calls = _calls(MPI, kind, classes, synchronous)
        classes[kind] = type(kind.__name__, (kind,), {"watched": None, "__module__": kind.__module__, **calls})
    return classes


def _calls(MPI: Any, kind: Any, classes: dict[Any, Any], synchronous: bool) -> dict[str, Any]:
    def base(name: str) -> Any:
        return getattr(kind, (_SYNCHRONOUS if synchronous else {}).get(name, name))

    calls: dict[str, Any] = {}
    for name in _SENDS:
        calls[name] = _send(name, base(name))
    for name in _STARTED_SENDS:
        calls[name] = _started_send(name, base(name), MPI)
    for name in ("Recv", "recv"):
        calls[name] = _receive(name, base(name), MPI)
    for name in ("Irecv", "irecv"):
        calls[name] = _started_receive(name, base(name), MPI)
    for name in ("Probe", "probe", "Mprobe", "mprobe"):  # what Mprobe has found nobody else can receive
        calls[name] = _receive(name, base(name), MPI, place=0, counts=name.lower() == "mprobe")
    for name in _EXCHANGES:
        calls[name] = _exchange(name, base(name), MPI)
    for name in (*_COLLECTIVES, *_OBJECT_COLLECTIVES):
        call = base(name)
        calls[name] = _collective(name, _after_barrier(call, kind.Barrier) if name in _IN_CONTEXT else call)
    for name in _COLLECTIVES:
        started = f"I{name.lower()}"
        calls[started] = _started_collective(started, base(started), MPI)
    for name in _MAKERS:
        if hasattr(kind, name):
            calls[name] = _maker(name, base(name), MPI, classes)
    for name in ("Free", "Disconnect"):
        calls[name] = _end(name, base(name))
    for name in _UNCOUNTED:
        if hasattr(kind, name):
            calls[name] = _uncounted(base(name))
    return calls


# -- messages ---------------------------------------------------------------------------------------------------------
# Arguments are taken as they are given, and only looked at: (thing, dest, tag), (buffer, source, tag, status).
Given = tuple[Any, ...]
Named = dict[str, Any]


def _argument(given: Given, named: Named, place: int, name: str, default: Any) -> Any:
    return given[place] if len(given) > place else named.get(name, default)


def _first(given: Given, named: Named) -> Any:
    return given[0] if given else next(iter(named.values()), None)


def _send(name: str, base: Callable) -> Callable:
    def call(self: Any, *given: Any, **named: Any) -> None:
        dest, tag = _argument(given, named, 1, "dest", -1), _argument(given, named, 2, "tag", 0)
        group = self.watched
        group.sent[dest, tag] = group.sent.get((dest, tag), 0) + 1
        begin(name, Waited(SEND, name, group, dest, tag, _first(given, named)))
        try:
            base(self, *given, **named)
        finally:
            over()

    return call


def _started_send(name: str, base: Callable, MPI: Any) -> Callable:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        dest, tag = _argument(given, named, 1, "dest", -1), _argument(given, named, 2, "tag", 0)
        group = self.watched
        group.sent[dest, tag] = group.sent.get((dest, tag), 0) + 1
        waited = Waited(SEND, name, group, dest, tag, brief(_first(given, named)))
        return _start(MPI, base(self, *given, **named), waited)

    return call


def _receive(name: str, base: Callable, MPI: Any, place: int = 1, counts: bool = True) -> Callable:
    """A receive, or a probe; the source is its argument number `place`."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        source = _argument(given, named, place, "source", MPI.ANY_SOURCE)
        tag = _argument(given, named, place + 1, "tag", MPI.ANY_TAG)
        status = _argument(given, named, place + 2, "status", None)
        if status is None and (source < 0 or tag < 0):  # whose message it was has to be asked
            status = MPI.Status()
            given, named = given[: place + 2], {**named, "status": status}
        group = self.watched
        begin(name, Waited(RECEIVE, name, group, source, tag, given[0] if place and given else named.get("buf")))
        try:
            result = base(self, *given, **named)
        finally:
            over()
        if counts:
            _count(group, source, tag, status, MPI)
        return result

    return call


def _count(group: Group, source: int, tag: int, status: Any, MPI: Any) -> None:
    """A message has been received."""
    if source == MPI.PROC_NULL:
        return
    key = (source, tag) if source >= 0 and tag >= 0 else (status.Get_source(), status.Get_tag())
    group.received[key] = group.received.get(key, 0) + 1


def _started_receive(name: str, base: Callable, MPI: Any) -> Callable:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        source = _argument(given, named, 1, "source", MPI.ANY_SOURCE)
        tag = _argument(given, named, 2, "tag", MPI.ANY_TAG)
        waited = Waited(RECEIVE, name, self.watched, source, tag, brief(_first(given, named)))
        return _start(MPI, base(self, *given, **named), waited)

    return call


# call -> places of (dest, sendtag, source, recvtag, status)
_EXCHANGES = {"Sendrecv": (1, 2, 4, 5, 6), "sendrecv": (1, 2, 4, 5, 6), "Sendrecv_replace": (1, 2, 3, 4, 5)}


def _exchange(name: str, base: Callable, MPI: Any) -> Callable:
    at_dest, at_sendtag, at_source, at_recvtag, at_status = _EXCHANGES[name]

    def call(self: Any, *given: Any, **named: Any) -> Any:
        dest = _argument(given, named, at_dest, "dest", -1)
        sendtag = _argument(given, named, at_sendtag, "sendtag", 0)
        source = _argument(given, named, at_source, "source", MPI.ANY_SOURCE)
        recvtag = _argument(given, named, at_recvtag, "recvtag", MPI.ANY_TAG)
        status = _argument(given, named, at_status, "status", None)
        if status is None and (source < 0 or recvtag < 0):
            status = MPI.Status()
            given, named = given[:at_status], {**named, "status": status}
        group = self.watched
        group.sent[dest, sendtag] = group.sent.get((dest, sendtag), 0) + 1
        receive = Waited(RECEIVE, name, group, source, recvtag, named.get("recvbuf"))
        begin(name, (Waited(SEND, name, group, dest, sendtag, _first(given, named)), receive))
        try:
            result = base(self, *given, **named)
        finally:
            over()
        _count(group, source, recvtag, status, MPI)
        return result

    return call


def _uncounted(base: Callable) -> Callable:
    """A call that passes messages which are not counted."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        self.watched.is_exact = False
        return base(self, *given, **named)

    return call


# -- collectives ------------------------------------------------------------------------------------------------------
def _collective(name: str, base: Callable) -> Callable:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        group = self.watched
        group.collectives += 1
        begin(name, Waited(COLLECTIVE, name, group, -1, -1, (given, named), group.collectives))
        try:
            return base(self, *given, **named)
        finally:
            over()

    return call


def _after_barrier(base: Callable, barrier: Callable) -> Callable:
    """The first time after a barrier: mpi4py keeps the interpreter's lock meanwhile, and no thread could look at it."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if not self.watched.has_context:
            self.watched.has_context = True
            barrier(self)
        return base(self, *given, **named)

    return call


def _started_collective(name: str, base: Callable, MPI: Any) -> Callable:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        group = self.watched
        group.collectives += 1
        what = tuple(brief(one) for one in given), {key: brief(one) for key, one in named.items()}
        waited = Waited(COLLECTIVE, name, group, -1, -1, what, group.collectives)
        return _start(MPI, base(self, *given, **named), waited)

    return call


def _maker(name: str, base: Callable, MPI: Any, classes: dict[Any, Any]) -> Callable:
    """A collective that makes a communicator."""
    make = _collective(name, base)

    def call(self: Any, *given: Any, **named: Any) -> Any:
        parent = self.watched
        parent.made += 1
        made = make(self, *given, **named)
        if made == MPI.COMM_NULL:
            return made
        members = made.Get_group()
        numbers = MPI.Group.Translate_ranks(members, list(range(members.size)), MPI.COMM_WORLD.Get_group())
        key = f"{parent.key}/{parent.made}:{numbers[0]}"
        group = this_rank.groups[key] = Group(key, numbers, made.name)
        return _watched(classes.get(type(made), type(made)), made, group)

    return call


def _end(name: str, base: Callable) -> Callable:
    """A collective after which the communicator is gone."""
    end = _collective(name, base)

    def call(self: Any) -> None:
        end(self)
        this_rank.groups.pop(self.watched.key, None)

    return call


# -- what was started -------------------------------------------------------------------------------------------------
def brief(thing: Any) -> Any:
    """What is kept of an argument: an array's type and shape, not the array."""
    shape = getattr(thing, "shape", None)
    return Array(str(thing.dtype), shape) if isinstance(shape, tuple) and hasattr(thing, "dtype") else type(thing)


class Array(NamedTuple):
    """What is kept of an array."""

    dtype: str
    shape: tuple[int, ...]


def _start(MPI: Any, request: Any, waited: Waited) -> Any:
    this_rank.number += 1
    this_rank.call, this_rank.place = waited.call, caller(3)
    request = MPI.Request(request)
    request.started = started = Started(waited, this_rank.place)
    this_rank.started[id(started)] = started
    return request


def _finish(started: Started | None, status: Any, MPI: Any) -> None:
    """A request is complete; status: of which message."""
    if started is None or started.is_done:
        return
    started.is_done = True
    this_rank.started.pop(id(started), None)
    waited = started.waited
    if waited.kind == RECEIVE:
        _count(waited.group, waited.peer, waited.tag, status, MPI)


def _under_way(requests: Any) -> list[Any]:
    return [one.started for one in requests if getattr(one, "started", None) is not None and not one.started.is_done]


def _request_class(MPI: Any) -> Any:
    """A class of requests that say what they wait for."""
    Base = MPI.Request

    class OfAnyKind(type(Base)):
        def __instancecheck__(cls, thing: Any) -> bool:
            return isinstance(thing, Base)

    def one(name: str, tests: bool) -> Callable:
        """Wait or test; what the base returns is true, or starts with true, when it is complete."""
        base = getattr(Base, name)

        def call(self: Any, status: Any = None) -> Any:
            started = self.started
            if started is None or started.is_done:
                return base(self, status)
            status = MPI.Status() if status is None else status
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

    def all_of(name: str, tests: bool) -> Any:
        base = getattr(Base, name)

        def call(cls: Any, requests: Any, statuses: Any = None) -> Any:
            requests = list(requests)
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

    def any_of(name: str, tests: bool) -> Any:
        base = getattr(Base, name)

        def call(cls: Any, requests: Any, status: Any = None) -> Any:
            requests = list(requests)
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

    def some_of(name: str, tests: bool) -> Any:
        base = getattr(Base, name)

        def call(cls: Any, requests: Any, statuses: Any = None) -> Any:
            requests = list(requests)
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

    def dropped(name: str) -> Callable:
        """After Cancel or Free nobody knows what becomes of it."""
        base = getattr(Base, name)

        def call(self: Any) -> None:
            if self.started is not None and not self.started.is_done:
                self.started.is_done = True
                this_rank.started.pop(id(self.started), None)
                self.started.waited.group.is_exact = False
            base(self)

        return call

    calls = {name: one(name, tests) for name, tests in (("Wait", False), ("wait", False), ("Test", True), ("test", True))}
    for made, kind in ((all_of, "all"), (any_of, "any"), (some_of, "some")):
        for name in (f"Wait{kind}", f"wait{kind}"):
            calls[name] = made(name, tests=False)
        for name in (f"Test{kind}", f"test{kind}"):
            calls[name] = made(name, tests=True)
    calls |= {name: dropped(name) for name in ("Cancel", "cancel", "Free", "free")}
    return OfAnyKind("Request", (Base,), {"started": None, "__module__": Base.__module__, **calls})

"""mpi4py's communicators and requests, with each call written down before it is made.

`wrap(MPI)` exchanges `MPI.COMM_WORLD`, `MPI.COMM_SELF` and `MPI.Request` in mpi4py's module for objects of subclasses,
and what is made from these is watched, too. Every call does what it did before. Not looked at: windows, files,
intercommunicators, persistent requests and neighbourhood collectives; who waits in one of them is taken to compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parallel_dl.watchdog import requests
from parallel_dl.watchdog.mismatch import Comparison
from parallel_dl.watchdog.record import COLLECTIVE, RECEIVE, SEND, Group, begin, caller, over, this_rank
from parallel_dl.watchdog.requests import brief, count, request_class, start

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


def is_watched(comm: Any) -> bool:
    """Whether this communicator's calls are written down."""
    return getattr(comm, "watched", None) is not None


def group_of(comm: Any) -> Group | None:
    """What is known of a communicator; None if its calls are not written down."""
    return getattr(comm, "watched", None)


def uncompared(comm: Any) -> Any:
    """The same communicator, but that its collectives are not compared: whoever makes them does that."""
    if getattr(comm, "comparison", None) is None:
        return comm
    return _watched(type(comm), type(comm)(comm), comm.watched)


def wrap(
    MPI: Any, synchronous: bool = False, checked: bool = False, before_end: Callable[[], None] = lambda: None
) -> None:
    """Watches mpi4py's communicators from now on.

    `synchronous`: each send waits for its receive; `checked`: ranks compare their collectives before making them.
    `before_end` is called when the program ends MPI.
    """
    if is_watched(MPI.COMM_WORLD):
        return
    if checked:
        from parallel_dl.watchdog import buffers

        requests.buffers = buffers
    classes = _classes(MPI, synchronous)
    size, rank = MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank
    for name, key, ranks in (("COMM_WORLD", WORLD, range(size)), ("COMM_SELF", f"self {rank}", (rank,))):
        plain = getattr(MPI, name)
        group = this_rank.groups[key] = Group(key, ranks, f"MPI.{name}")
        watched = _watched(classes[type(plain)], plain, group)
        watched.comparison = Comparison(group) if checked and group.size > 1 else None
        setattr(MPI, name, watched)
    MPI.Request = request_class(MPI)
    finalize = MPI.Finalize

    def Finalize() -> None:
        """Keeps the interpreter's lock while it waits: what this rank will never do is told before."""
        before_end()
        finalize()

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
        own = {"watched": None, "comparison": None, "__module__": kind.__module__}
        classes[kind] = type(kind.__name__, (kind,), {**own, **calls})
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
        calls[name] = _collective(name, _after_barrier(call, kind.Barrier) if name in _IN_CONTEXT else call, MPI)
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
        if len(given) == 3:
            _, dest, tag = given
        else:
            dest, tag = _argument(given, named, 1, "dest", -1), _argument(given, named, 2, "tag", 0)
        group = self.watched
        group.sent[dest, tag] = group.sent.get((dest, tag), 0) + 1
        begin(name, (SEND, name, group, dest, tag, _first(given, named), 0))
        try:
            base(self, *given, **named)
        finally:
            over()

    return call


def _started_send(name: str, base: Callable, MPI: Any) -> Callable:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        if len(given) == 3:
            _, dest, tag = given
        else:
            dest, tag = _argument(given, named, 1, "dest", -1), _argument(given, named, 2, "tag", 0)
        group = self.watched
        group.sent[dest, tag] = group.sent.get((dest, tag), 0) + 1
        thing = _first(given, named)
        waited = (SEND, name, group, dest, tag, brief(thing), 0)
        guard = None
        if self.comparison is not None and requests.buffers.can_be_guarded(thing):
            guard = requests.buffers.SentArray(thing, name, caller(2))
        return start(MPI, base(self, *given, **named), waited, guard)

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
        begin(name, (RECEIVE, name, group, source, tag, given[0] if place and given else named.get("buf"), 0))
        try:
            result = base(self, *given, **named)
        finally:
            over()
        if counts:
            count(group, source, tag, status, MPI)
        return result

    return call


def _started_receive(name: str, base: Callable, MPI: Any) -> Callable:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        if len(given) == 3:
            _, source, tag = given
        else:
            source = _argument(given, named, 1, "source", MPI.ANY_SOURCE)
            tag = _argument(given, named, 2, "tag", MPI.ANY_TAG)
        thing = _first(given, named)
        waited = (RECEIVE, name, self.watched, source, tag, brief(thing), 0)
        if self.comparison is None or source == MPI.PROC_NULL or not requests.buffers.can_be_guarded(thing):
            return start(MPI, base(self, *given, **named), waited)
        guard = requests.buffers.ReceivedArray(thing, name, caller(2))
        return start(MPI, base(self, guard.arriving, source, tag), waited, guard)

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
        receive = (RECEIVE, name, group, source, recvtag, named.get("recvbuf"), 0)
        begin(name, [(SEND, name, group, dest, sendtag, _first(given, named), 0), receive])
        try:
            result = base(self, *given, **named)
        finally:
            over()
        count(group, source, recvtag, status, MPI)
        return result

    return call


def _uncounted(base: Callable) -> Callable:
    """A call that passes messages which are not counted."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        self.watched.is_exact = False
        return base(self, *given, **named)

    return call


# -- collectives ------------------------------------------------------------------------------------------------------
def _collective(name: str, base: Callable, MPI: Any = None) -> Callable:
    """A collective; compared with the other ranks' before, where it is asked for and MPI is given."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        group = self.watched
        if self.comparison is not None and MPI is not None:
            self.comparison.compare(MPI, self, name, given, named)
        group.collectives += 1
        begin(name, (COLLECTIVE, name, group, -1, -1, (given, named), group.collectives))
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
        if self.comparison is not None:
            self.comparison.compare(MPI, self, name, given, named)
        group.collectives += 1
        what = tuple(brief(one) for one in given), {key: brief(one) for key, one in named.items()}
        waited = (COLLECTIVE, name, group, -1, -1, what, group.collectives)
        return start(MPI, base(self, *given, **named), waited)

    return call


def _maker(name: str, base: Callable, MPI: Any, classes: dict[Any, Any]) -> Callable:
    """A collective that makes a communicator."""
    make = _collective(name, base, MPI)

    def call(self: Any, *given: Any, **named: Any) -> Any:
        parent = self.watched
        parent.made += 1
        made = make(self, *given, **named)
        if made == MPI.COMM_NULL:
            return made
        members = made.Get_group()
        numbers = MPI.Group.Translate_ranks(members, list(range(members.size)), MPI.COMM_WORLD.Get_group())
        key = f"{parent.key}/{parent.made}:{numbers[0]}"
        kind = "copy" if name in ("Dup", "Clone", "Dup_with_info") else "part"
        group = this_rank.groups[key] = Group(key, numbers, made.name or f"a {kind} of {parent.name}")
        watched = _watched(classes.get(type(made), type(made)), made, group)
        watched.comparison = None if self.comparison is None or group.size == 1 else Comparison(group)
        return watched

    return call


def _end(name: str, base: Callable) -> Callable:
    """A collective after which the communicator is gone."""
    end = _collective(name, base)

    def call(self: Any) -> None:
        group = self.watched
        end(self)
        if not group.sent and not group.received:  # else what is left of its messages is told at the end
            this_rank.groups.pop(group.key, None)

    return call

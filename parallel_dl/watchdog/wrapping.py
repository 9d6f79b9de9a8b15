"""The calls of mpi4py's communicators, each written down before it is made.

Every call does what it did before. Not looked at: windows, files, intercommunicators, persistent requests and
neighbourhood collectives; who waits in one of them is taken to compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parallel_dl.watchdog import requests
from parallel_dl.watchdog.mismatch import Comparison
from parallel_dl.watchdog.record import COLLECTIVE, RECEIVE, SEND, Group, begin, caller, over, this_rank
from parallel_dl.watchdog.requests import count, count_sent, kept, start

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


def watch(comm: Any, group: Group, checked: bool) -> None:
    comm.watched = this_rank.groups[group.key] = group
    comm.comparison = Comparison(group, comm.mpi4pys(comm).Dup()) if checked and group.size > 1 else None


def calls_of(MPI: Any, kind: Any, classes: dict[Any, Any], synchronous: bool) -> dict[str, Any]:
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
    def call(self: Any, *given: Any, **named: Any) -> Any:
        if len(given) == 3:
            _, dest, tag = given
        else:
            dest, tag = _argument(given, named, 1, "dest", -1), _argument(given, named, 2, "tag", 0)
        group = self.watched
        if group is None or dest < 0:  # to nobody
            return base(self, *given, **named)
        count_sent(group, dest, tag)
        begin(name, (SEND, name, group, dest, tag, _first(given, named), 0))
        try:
            return base(self, *given, **named)
        except BaseException:  # what cannot be sent in this form may be sent in another
            count_sent(group, dest, tag, -1)
            raise
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
        if group is None or dest < 0:
            return base(self, *given, **named)
        thing, guard = _first(given, named), None
        if self.comparison is not None and requests.buffers.can_be_guarded(thing):
            guard = requests.buffers.SentArray(thing, name, caller(2))
        count_sent(group, dest, tag)
        try:
            request = base(self, *given, **named)
        except BaseException:
            count_sent(group, dest, tag, -1)
            raise
        return start(MPI, request, (SEND, name, group, dest, tag, kept(thing), 0), guard=guard)

    return call


def _receive(name: str, base: Callable, MPI: Any, place: int = 1, counts: bool = True) -> Callable:
    """A receive, or a probe; the source is its argument number `place`."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if len(given) == place + 2 and not named:
            source, tag, status = given[place], given[place + 1], None
        else:
            source = _argument(given, named, place, "source", MPI.ANY_SOURCE)
            tag = _argument(given, named, place + 1, "tag", MPI.ANY_TAG)
            status = _argument(given, named, place + 2, "status", None)
        if self.watched is None or source == MPI.PROC_NULL:
            return base(self, *given, **named)
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
        if self.watched is None or source == MPI.PROC_NULL:
            return base(self, *given, **named)
        thing = _first(given, named)
        waited = (RECEIVE, name, self.watched, source, tag, kept(thing), 0)
        if self.comparison is None or not requests.buffers.can_be_guarded(thing):
            return start(MPI, base(self, *given, **named), waited)
        guard = requests.buffers.ReceivedArray(thing, name, caller(2))
        return start(MPI, base(self, guard.arriving, source, tag), waited, guard=guard)

    return call


# call -> places of (dest, sendtag, source, recvtag, status)
_EXCHANGES = {"Sendrecv": (1, 2, 4, 5, 6), "sendrecv": (1, 2, 4, 5, 6), "Sendrecv_replace": (1, 2, 3, 4, 5)}


def _exchange(name: str, base: Callable, MPI: Any) -> Callable:
    at_dest, at_sendtag, at_source, at_recvtag, at_status = _EXCHANGES[name]

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if len(given) == at_status and not named:
            dest, sendtag, source, recvtag = given[at_dest], given[at_sendtag], given[at_source], given[at_recvtag]
        else:
            dest = _argument(given, named, at_dest, "dest", -1)
            sendtag = _argument(given, named, at_sendtag, "sendtag", 0)
            source = _argument(given, named, at_source, "source", MPI.ANY_SOURCE)
            recvtag = _argument(given, named, at_recvtag, "recvtag", MPI.ANY_TAG)
        status = _argument(given, named, at_status, "status", None)
        group, sends, receives = self.watched, dest >= 0, source != MPI.PROC_NULL
        if group is None or not (sends or receives):
            return base(self, *given, **named)
        if status is None and (source < 0 or recvtag < 0):
            status = MPI.Status()
            given, named = given[:at_status], {**named, "status": status}
        both = [
            (SEND, name, group, dest, sendtag, _first(given, named), 0),
            (RECEIVE, name, group, source, recvtag, named.get("recvbuf"), 0),
        ]
        if sends:
            count_sent(group, dest, sendtag)
        begin(name, both if sends and receives else both[:1] if sends else both[1:])
        try:
            result = base(self, *given, **named)
        finally:
            over()
        if receives:
            count(group, source, recvtag, status, MPI)
        return result

    return call


def _uncounted(base: Callable) -> Callable:
    """A call that passes messages which are not counted."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if self.watched is not None:
            self.watched.is_exact = False
        return base(self, *given, **named)

    return call


# -- collectives ------------------------------------------------------------------------------------------------------
def _collective(name: str, base: Callable, MPI: Any = None) -> Callable:
    """A collective; compared with the other ranks' before, where it is asked for and MPI is given."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        group = self.watched
        if group is None:
            return base(self, *given, **named)
        if self.comparison is not None and MPI is not None:
            self.comparison.compare(MPI, name, given, named)
        number = group.begin_collective(name)
        begin(name, (COLLECTIVE, name, group, -1, -1, (given, named), number))
        try:
            return base(self, *given, **named)
        finally:
            over()

    return call


def _after_barrier(base: Callable, barrier: Callable) -> Callable:
    """The first time after a barrier: mpi4py keeps the interpreter's lock meanwhile, and no thread could look at it."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if self.watched is not None and not self.watched.has_context:
            self.watched.has_context = True
            barrier(self)
        return base(self, *given, **named)

    return call


def _started_collective(name: str, base: Callable, MPI: Any) -> Callable:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        group = self.watched
        if group is None:
            return base(self, *given, **named)
        compared = None if self.comparison is None else self.comparison.start(MPI, name, given, named)
        number = group.begin_collective(name)
        what = tuple(kept(one) for one in given), {key: kept(one) for key, one in named.items()}
        waited = (COLLECTIVE, name, group, -1, -1, what, number)
        return start(MPI, base(self, *given, **named), waited, compared)

    return call


def _maker(name: str, base: Callable, MPI: Any, classes: dict[Any, Any]) -> Callable:
    """A collective that makes a communicator."""
    make = _collective(name, base, MPI)

    def call(self: Any, *given: Any, **named: Any) -> Any:
        parent = self.watched
        made = make(self, *given, **named)
        if parent is None:
            return made
        parent.made += 1
        if made == MPI.COMM_NULL:
            return made
        members = made.Get_group()
        numbers = MPI.Group.Translate_ranks(members, list(range(members.size)), MPI.COMM_WORLD.Get_group())
        key = f"{parent.key}/{parent.made}:{numbers[0]}"
        kind = "copy" if name in ("Dup", "Clone", "Dup_with_info") else "part"
        watched = classes[type(made)](made) if type(made) in classes else made
        group = Group(key, numbers, made.name or f"a {kind} of {parent.name}")
        watch(watched, group, self.comparison is not None)
        return watched

    return call


def _end(name: str, base: Callable) -> Callable:
    """A collective after which the communicator is gone."""
    end = _collective(name, base)

    def call(self: Any) -> None:
        group = self.watched
        if self.comparison is not None:
            self.comparison.end()
        end(self)
        if group is None:
            return
        if not group.sent and not group.received:  # else what is left of its messages is told at the end
            this_rank.groups.pop(group.key, None)

    return call

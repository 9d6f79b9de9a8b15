"""mpi4py's communicators and requests, exchanged for such as write down what they do.

`wrap(MPI)` exchanges communicators and classes in mpi4py's module for objects and classes of ours, and what is made
from them is watched, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parallel_dl.watchdog import requests
from parallel_dl.watchdog.record import Group
from parallel_dl.watchdog.requests import like_its_base, request_class
from parallel_dl.watchdog.wrapping import calls_of, watch

WORLD = "world"  # the key of the group of all ranks


def is_watched(comm: Any) -> bool:
    """Whether this communicator's calls are written down."""
    return group_of(comm) is not None


def group_of(comm: Any) -> Group | None:
    """What is known of a communicator; None if its calls are not written down."""
    return comm.watched if hasattr(type(comm), "watched") else None  # another transport may have no such thing


def uncompared(comm: Any) -> Any:
    """The same communicator, but that its collectives are not compared: whoever makes them does that."""
    if group_of(comm) is None or comm.comparison is None:
        return comm
    copy = type(comm)(comm)
    copy.comparison = None
    return copy


def unwatched(comm: Any) -> Any:
    """The same communicator as mpi4py made it: for messages that the program knows nothing of."""
    return comm.mpi4pys(comm) if hasattr(type(comm), "mpi4pys") else comm


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
    for kind, watched in classes.items():
        setattr(MPI, kind.__name__, watched)
    MPI.Request = request_class(MPI)
    if MPI.Is_initialized():
        _know_world(MPI, checked)
    else:
        for name in ("Init", "Init_thread"):
            setattr(MPI, name, _init(MPI, getattr(MPI, name), checked))
    finalize = MPI.Finalize

    def Finalize() -> None:
        """Keeps the interpreter's lock while it waits: what this rank will never do is told before."""
        before_end()
        finalize()

    MPI.Finalize = Finalize


def _know_world(MPI: Any, checked: bool) -> None:
    """MPI has begun: who is there."""
    size, rank = MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank
    for name, key, ranks in (("COMM_WORLD", WORLD, range(size)), ("COMM_SELF", f"self {rank}", (rank,))):
        comm = MPI.Intracomm(getattr(MPI, name))
        watch(comm, Group(key, ranks, f"MPI.{name}"), checked)
        setattr(MPI, name, comm)


def _init(MPI: Any, base: Callable, checked: bool) -> Callable:
    """The program begins MPI itself."""

    def call(*given: Any, **named: Any) -> Any:
        result = base(*given, **named)
        _know_world(MPI, checked)
        return result

    return call


def _classes(MPI: Any, synchronous: bool) -> dict[Any, Any]:
    """mpi4py's class -> ours."""
    classes: dict[Any, Any] = {}
    for kind in (MPI.Intracomm, MPI.Cartcomm, MPI.Graphcomm, MPI.Distgraphcomm):
        calls = calls_of(MPI, kind, classes, synchronous)
        own = {"watched": None, "comparison": None, "mpi4pys": kind, "__new__": _copy(kind)}
        own["__reduce__"] = _reduce(MPI, kind)
        classes[kind] = like_its_base(kind, {**own, **calls})
    return classes


def _copy(kind: Any) -> Callable:
    """`Intracomm(comm)` is the same communicator as `comm`, and watched if that is."""

    def __new__(cls: Any, comm: Any = None) -> Any:
        made = kind.__new__(cls, comm)
        made.watched, made.comparison = getattr(comm, "watched", None), getattr(comm, "comparison", None)
        return made

    return __new__


def _reduce(MPI: Any, kind: Any) -> Callable:
    """The communicators that there are on every rank are pickled and copied by their names."""

    def __reduce__(self: Any) -> Any:
        for name in ("COMM_WORLD", "COMM_SELF"):
            if self == getattr(MPI, name):
                return name if self is getattr(MPI, name) else (type(self), (getattr(MPI, name),))
        return kind.__reduce__(self)

    return __reduce__

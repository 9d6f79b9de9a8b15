"""Collectives that do not match: compared before they are made, also those of programs in plain mpi4py."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from parallel_dl.watchdog.picture import columns, named
from parallel_dl.watchdog.record import COLLECTIVE, Group, Told, begin, over, where

_LINE = 256  # bytes: what is compared, and where the program calls
_FIELDS = 4  # that are compared
_ANYTHING = "?"  # of an argument that is not compared


ENDED = "has ended"
"""what a rank tells the others when its program is over"""


class CollectiveMismatch(RuntimeError):
    """Raised on all ranks if they did not call the same collective; nothing was communicated."""

    @property
    def headline(self) -> str:
        """The first line, without the calls of all ranks side by side."""
        return str(self).partition("\n")[0]


def calls_differ(communicator: str, lines: Sequence[str], places: Sequence[str]) -> str:
    """What does not match, in one line, the odd ranks first; and, if `places` are known, a line for each rank."""
    alike: dict[str, list[int]] = {}
    for rank, line in enumerate(lines):
        alike.setdefault(line, []).append(rank)
    order = sorted(alike, key=lambda line: len(alike[line]))  # most ranks are right, one thinks
    sides = []
    for line in order:
        ranks = alike[line]
        verb = line if len(ranks) == 1 else line.replace("calls", "call", 1).replace("has ended", "have ended")
        sides.append(f"{named(ranks)} {verb}")
    told = [f"on communicator {communicator!r}: {sides[0]} but {', '.join(sides[1:])}"]
    if any(places):
        ended = {rank for rank, line in enumerate(lines) if line == ENDED}
        undecided = len(alike[order[0]]) == len(alike[order[-1]])
        odd = ended or (set() if undecided else set(alike[order[0]]))
        ranks = [rank for line in order for rank in alike[line]]
        said = [f"{ENDED}; its last call:" if rank in ended else lines[rank].removeprefix("calls ") for rank in ranks]
        rows = [(f"rank {rank}", what, places[rank]) for rank, what in zip(ranks, said)]
        told += columns(rows, [rank in odd for rank in ranks])
    return "\n".join(told)


class Comparison:
    """Compares the collectives that a program calls on one communicator of mpi4py, over its duplicate `private`."""

    def __init__(self, group: Group, private: Any) -> None:
        self._private = private
        self._group = group.comparisons()
        self._of = group
        self._begun: deque[Compared] = deque()

    def start(self, MPI: Any, name: str, given: tuple, named_arguments: dict[str, Any]) -> Compared:
        """Tells the other ranks which call this one makes, and waits for none of them."""
        while self._begun and (self._begun[0].is_checked or self._begun[0].is_complete()):
            self._begun.popleft().check()
        self._group.collectives += 1
        self._group.name = self._of.name
        line = "\t".join([*_fields(MPI, name, given, named_arguments), where(4)])
        own, lines = line.encode()[:_LINE].ljust(_LINE, b"\0"), bytearray(_LINE * self._group.size)
        request = self._private.Iallgather([own, MPI.BYTE], [lines, MPI.BYTE])
        waited = (COLLECTIVE, name, self._group, -1, -1, (given, named_arguments), self._group.collectives)
        compared = Compared(request, own, lines, waited)
        self._begun.append(compared)
        return compared

    def compare(self, MPI: Any, name: str, given: tuple, named_arguments: dict[str, Any]) -> None:
        """CollectiveMismatch, on all ranks, unless all are about to make the same call."""
        self.start(MPI, name, given, named_arguments)
        self._check_all()

    def end(self) -> None:
        """The communicator is about to go: all that was begun has been called by all ranks, or will be."""
        self._check_all()
        self._private.Free()

    def _check_all(self) -> None:
        while self._begun:
            self._begun.popleft().wait(depth=6)


class Compared:
    """One call of which the ranks tell each other; all but blocking calls are checked when they are waited for."""

    __slots__ = ("_lines", "_own", "_request", "_waited", "is_checked")

    def __init__(self, request: Any, own: bytes, lines: bytearray, waited: Told) -> None:
        self._request, self._own, self._lines, self._waited = request, own, lines, waited
        self.is_checked = False

    def is_complete(self) -> bool:
        """Whether all ranks have told."""
        return self.is_checked or self._request.Test()

    def wait(self, depth: int = 4) -> None:
        """Waits for all ranks, and checks; the frame at `depth` has called."""
        if self.is_checked:
            return
        begin(self._waited[1], self._waited, depth)
        try:
            for _ in range(1000):
                if self._request.Test():
                    break
            else:
                while not self._request.Test():
                    time.sleep(1e-4)
        finally:
            over()
        self.check()

    def check(self) -> None:
        """CollectiveMismatch unless all ranks make the same call."""
        if self.is_checked:
            return
        self.is_checked = True
        if self._lines == self._own * (len(self._lines) // _LINE):
            return
        told = [self._lines[at : at + _LINE] for at in range(0, len(self._lines), _LINE)]
        rows = [line.rstrip(b"\0").decode(errors="replace").split("\t") for line in told]
        if _differ([row[:_FIELDS] for row in rows]):
            places = [row[_FIELDS] if len(row) > _FIELDS else "" for row in rows]
            said = [f"calls {_call(row[:_FIELDS])}" for row in rows]
            raise CollectiveMismatch(calls_differ(self._waited[2].name, said, places))


def _differ(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the ranks' calls do not match: what some rank does not compare matches everything."""
    if len({row[0] for row in rows}) > 1:
        return True
    return any(len({entry for entry in column if entry != _ANYTHING}) > 1 for column in zip(*rows))


def _call(fields: Sequence[str]) -> str:
    said = [field for field in fields[1:] if field not in ("", _ANYTHING)]
    return f"{fields[0]}({', '.join(said)})"


# call -> places of op and root among the arguments
_OPS = {"reduce": 2, "allreduce": 2, "reduce_scatter": 3, "reduce_scatter_block": 2, "scan": 2, "exscan": 2}
_OBJECT_OPS = {"reduce": 1, "allreduce": 1, "scan": 1, "exscan": 1}
_ROOTS = {"bcast": 1, "gather": 2, "gatherv": 2, "scatter": 2, "scatterv": 2, "reduce": 3}
_OBJECT_ROOTS = {"bcast": 1, "gather": 1, "scatter": 1, "reduce": 2}
# whose first buffer has the same type and number of values on all ranks (where it is MPI.IN_PLACE, the second has)
_SAME = ("bcast", "allreduce", "reduce", "scan", "exscan", "allgather", "reduce_scatter_block")


def _fields(MPI: Any, name: str, given: tuple, named_arguments: dict[str, Any]) -> list[str]:
    """Name, root, operation and what is passed, as far as they have to be the same on all ranks."""
    plain = name[1:] if name[:1] == "I" else name.lower()
    arrays = name[:1].isupper()

    def argument(places: dict[str, int], key: str, default: Any) -> Any:
        place = places.get(plain)
        return None if place is None else given[place] if len(given) > place else named_arguments.get(key, default)

    root = argument(_ROOTS if arrays else _OBJECT_ROOTS, "root", 0)
    op = argument(_OPS if arrays else _OBJECT_OPS, "op", MPI.SUM)
    values = list(given) + [value for key, value in named_arguments.items() if key.startswith(("send", "recv", "buf"))]
    passed = _passed(MPI, values) if arrays and plain in _SAME else ""
    name = "Barrier" if name == "barrier" else name  # the same call
    return [name, "" if root is None else f"root={root}", "" if op is None else f"op={_op(MPI, op)}", passed]


def _op(MPI: Any, op: Any) -> str:
    names = ("MAX", "MIN", "SUM", "PROD", "LAND", "BAND", "LOR", "BOR", "LXOR", "BXOR", "MAXLOC", "MINLOC")
    return next((name for name in names if op == getattr(MPI, name)), _ANYTHING)


def _passed(MPI: Any, values: Sequence[Any]) -> str:
    """Type and number of values of the buffer, where an array says it."""
    in_place = type(MPI.IN_PLACE)
    buffer: Any = next((value for value in values if not isinstance(value, in_place)), None)
    shape = getattr(buffer, "shape", None)
    dtype: Any = getattr(buffer, "dtype", None)
    if not isinstance(shape, tuple) or getattr(dtype, "kind", "?") not in "fciu":  # others' arrays have no kinds
        return _ANYTHING
    count = 1
    for length in shape:
        count *= length
    kind = "i" if dtype.kind == "u" else dtype.kind
    return f"{count} x {kind}{dtype.itemsize}"

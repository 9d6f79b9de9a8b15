"""Collectives that do not match: compared before they are made, also those of programs in plain mpi4py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from parallel_dl.watchdog.picture import columns, named
from parallel_dl.watchdog.record import COLLECTIVE, Group, begin, over, this_rank, where

_LINE = 256  # bytes
_ANYTHING = "?"  # of an argument that is not compared


class CollectiveMismatch(RuntimeError):
    """Raised on all ranks if they did not call the same collective; nothing was communicated."""


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
        odd = set() if len(alike[order[0]]) == len(alike[order[-1]]) else set(alike[order[0]])
        ranks = [rank for line in order for rank in alike[line]]
        rows = [(f"rank {rank}", lines[rank].removeprefix("calls "), places[rank]) for rank in ranks]
        told += columns(rows, [rank in odd for rank in ranks])
    return "\n".join(told)


class Comparison:
    """Compares the collectives that a program calls on one communicator of mpi4py, over a private duplicate."""

    def __init__(self, group: Group) -> None:
        self._private: Any = None
        self._calls = 0
        self._group = Group(f"{group.key} compared", group.ranks, group.name)

    def compare(self, MPI: Any, comm: Any, name: str, given: tuple, named_arguments: dict[str, Any]) -> None:
        """CollectiveMismatch, on all ranks, unless all are about to make the same call."""
        self._calls += 1
        group = self._group
        this_rank.groups[group.key] = group
        group.collectives += 1
        begin(name, (COLLECTIVE, name, group, -1, -1, (given, named_arguments), group.collectives), 4)
        try:
            if self._private is None:
                self._private = MPI.Intracomm.Dup(MPI.Intracomm(comm))
            fields = _fields(MPI, comm, name, given, named_arguments)
            lines = self._exchanged(MPI, "\t".join(fields))
            if all(line == lines[0] for line in lines) or not _differ(lines):
                return
            places = self._exchanged(MPI, where(4))
        finally:
            over()
        said = [f"calls {_call(line.split(chr(9)))}" for line in lines]
        raise CollectiveMismatch(calls_differ(group.name, said, places))

    def _exchanged(self, MPI: Any, text: str) -> list[str]:
        size = self._private.size
        own, lines = text.encode()[:_LINE].ljust(_LINE, b"\0"), bytearray(_LINE * size)
        request = self._private.Iallgather([own, MPI.BYTE], [lines, MPI.BYTE])
        for _ in range(1000):
            if request.Test():
                break
        else:
            while not request.Test():
                time.sleep(1e-4)
        return [lines[r * _LINE : (r + 1) * _LINE].rstrip(b"\0").decode(errors="replace") for r in range(size)]


def _differ(lines: Sequence[str]) -> bool:
    """Whether the ranks' calls do not match: what some rank does not compare matches everything."""
    rows = [line.split("\t") for line in lines]
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


def _fields(MPI: Any, comm: Any, name: str, given: tuple, named_arguments: dict[str, Any]) -> list[str]:
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
    return [name, "" if root is None else f"root={root}", "" if op is None else f"op={_op(MPI, op)}", passed]


def _op(MPI: Any, op: Any) -> str:
    names = ("MAX", "MIN", "SUM", "PROD", "LAND", "BAND", "LOR", "BOR", "LXOR", "BXOR", "MAXLOC", "MINLOC")
    return next((name for name in names if op == getattr(MPI, name)), _ANYTHING)


def _passed(MPI: Any, values: Sequence[Any]) -> str:
    """Type and number of values of the buffer, where an array says it."""
    in_place = type(MPI.IN_PLACE)
    buffer: Any = next((value for value in values if not isinstance(value, in_place)), None)
    shape, dtype = getattr(buffer, "shape", None), getattr(buffer, "dtype", None)
    if not isinstance(shape, tuple) or dtype is None or dtype.kind not in "fciu":
        return _ANYTHING
    count = 1
    for length in shape:
        count *= length
    kind = "i" if dtype.kind == "u" else dtype.kind
    return f"{count} x {kind}{dtype.itemsize}"

"""What mpirun and ranks print about a rank's end: read for the launcher's one line, and kept from the user."""

from __future__ import annotations

import re
from typing import NamedTuple

_NAMES = (b"prterun", b"mpirun", b"mpiexec")
_SAYS = (b"noticed that", b"detected that one", b"has exited due to process rank")
# Open MPI's pages, and what its ranks write about MPI_Abort, are between two lines of dashes; MPICH's page is between
# two lines of equals signs, and three lines follow
_PAGES = re.compile(
    rb"""^-{60,}\n
         (?:(?:prterun|mpirun|mpiexec)\ (?:noticed\ that\ process
                                         | detected\ that\ one\ or\ more\ processes\ exited
                                         | has\ exited\ due\ to\ process\ rank)
            | MPI_ABORT\ was\ invoked\ on\ rank)
         (?:(?!-{60}).*\n)+
         -{60,}\n
       | ^\n?={60,}\n
         =\ +BAD\ TERMINATION\ OF\ ONE\ OF\ YOUR\ APPLICATION\ PROCESSES\n
         (?:=\ .*\n)+
         ={60,}\n
       | ^Abort\(-?\d+\)\ on\ node\ \d+\ \(rank\ \d+\ in\ comm\ \d+\):\ application\ called\ MPI_Abort\(.*\n
       | ^YOUR\ APPLICATION\ TERMINATED\ WITH\ THE\ EXIT\ STRING:\ .*\n
         (?:This\ typically\ refers\ to\ a\ problem\ .*\n)?
         (?:Please\ see\ the\ FAQ\ page\ .*\n)?
       | ^\[\S+\]\ PMIX\ ERROR:\ PMIX_ERR_UNREACH\ .*\n
       | ^parallel-dl:\ (?:rank\ \d+\ cannot\ start:|a\ rank\ was\ interrupted\ \(SIGINT\)\ while\ it\ started).*\n
    """,
    re.MULTILINE | re.VERBOSE,
)
_BEGINNINGS = [
    *(b"-" * 74 + b"\n%s %s" % (name, says) for name in _NAMES for says in _SAYS),
    b"-" * 74 + b"\nMPI_ABORT was invoked on rank",
    b"=" * 83 + b"\n=   BAD TERMINATION",
]
_MPI_ENDS = re.compile(rb"^MPI_ABORT was invoked on rank|\*\*\* MPI_ERRORS_(?:ARE_FATAL|ABORT) ", re.MULTILINE)
_RULE = re.compile(rb"^\n?(-{20}|={20})", re.MULTILINE)
_KILLED = re.compile(rb"noticed that process rank (\d+) with PID \d+ on node \S+ exited on\s+signal (\d+)")
_EXITED = re.compile(rb"Process name: +\[\S+@\d+,(\d+)\]\s+Exit code: +(\d+)")
_LEFT = re.compile(rb"has exited due to process rank (\d+) with PID \d+ on node \S+\s+exiting\s+improperly")
_NOT_STARTED = re.compile(
    rb"^parallel-dl: (rank \d+ cannot start: .*|a rank was interrupted \(SIGINT\) while it started)$", re.MULTILINE
)


class Said(NamedTuple):
    """The rank that mpirun says was the first to end, and how."""

    rank: int
    signal: int = 0
    code: int = 0


def _may_be_a_page(text: bytes) -> bool:
    text = text.lstrip()
    return any(text.startswith(beginning) or beginning.startswith(text) for beginning in _BEGINNINGS)


class Filter:
    """Takes the pages out of what is printed, which comes in pieces."""

    def __init__(self) -> None:
        self._held = b""  # what may become a page
        self._mpi_ends = False

    def passed(self, data: bytes) -> bytes:
        """What can be shown now, of this piece and of what was held."""
        data = self._held + data
        self._mpi_ends = self._mpi_ends or _MPI_ENDS.search(data) is not None
        data = _PAGES.sub(b"", data)
        if self._mpi_ends:  # Open MPI writes a zero byte after its words
            data = data.replace(b"\0", b"")
        rules = [rule.start() for rule in _RULE.finditer(data)]
        start = next((place for place in rules if _may_be_a_page(data[place:])), len(data))
        self._held = data[start:]
        return data[:start]

    def rest(self) -> bytes:
        """After the last piece: what was held and has not become a page."""
        return b"" if self._held.lstrip().startswith(tuple(_BEGINNINGS)) else self._held


def pages_in(data: bytes) -> bytes:
    """The pages alone."""
    return b"".join(_PAGES.findall(data))


def end_in(data: bytes) -> Said | None:
    """What a page says, if there is one."""
    if found := _KILLED.search(data):
        return Said(int(found[1]), signal=int(found[2]))
    if found := _EXITED.search(data):
        return Said(int(found[1]), code=int(found[2]))
    if found := _LEFT.search(data):
        return Said(int(found[1]))
    return None


def not_started(rank: int, why: str) -> bytes:
    """The line by which a rank that cannot reach the launcher tells it so, through mpirun."""
    return f"parallel-dl: rank {rank} cannot start: {why}\n".encode()


def not_started_in(data: bytes) -> str | None:
    """What was said by a rank that ended before it could reach the launcher."""
    found = _NOT_STARTED.search(data)
    return found[1].decode(errors="replace") if found else None

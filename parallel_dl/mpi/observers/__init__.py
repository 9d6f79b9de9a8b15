"""Observers of calls: each sees every call of a communicator on its one path, and none knows of another.

    checked.py            before a collective the ranks compare what they are about to call; notes ahead of messages
    notes.py              what a message holds, sent ahead of it
    ledger.py             what was passed to other ranks, counted
    timeline.py           when each call began and ended
    flight_recorder.py    the last calls of a rank, for the report when it fails

A new one is a class with `begin`, `end` or `passed` (`calls.Observer`), given to `Communicator(mpi, observers=[...])`.
"""

from parallel_dl.mpi.observers.checked import CollectiveMismatch, MessageMismatch
from parallel_dl.mpi.observers.flight_recorder import FlightRecorder, RecordedCall
from parallel_dl.mpi.observers.ledger import Ledger, LedgerRow, gather_rows
from parallel_dl.mpi.observers.timeline import Span, Timeline

__all__ = [
    "CollectiveMismatch",
    "FlightRecorder",
    "Ledger",
    "LedgerRow",
    "MessageMismatch",
    "RecordedCall",
    "Span",
    "Timeline",
    "gather_rows",
]

"""Known races: a barrier or a wait that is missing, a buffer that is used too early. Only stress is sure to see them.

On an idle machine, or with small messages, a run with one of these is usually right. They are planted like other known
bugs (`mutants`), under stress, where each of them makes something that is not a number or is seen by its buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from parallel_dl.data_parallel.buckets import Bucket
from parallel_dl.data_parallel.gradients import GradientAllReduce
from parallel_dl.equivalence.mutants import Mutant, Plant, replaced
from parallel_dl.hybrid.exchange import ACTIVATIONS, GRADIENTS
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Pending, SharedWindow, alone
from parallel_dl.mpi.messages import TAG_SLICES
from parallel_dl.mpi.reductions import TAG_TREE
from parallel_dl.pipeline_parallel.messages import Messages


# -- shared memory -------------------------------------------------------------------------------------------------
def _without_barrier(number: int) -> Plant:
    """The sum in the window without its first or second barrier."""

    def make(before: Any) -> Any:
        def wrong(window: SharedWindow) -> np.ndarray:
            if number == 2:
                window.meet()
            window.add_up()
            if number == 1:
                window.meet()
            return window.total

        return wrong

    return lambda stack: replaced(stack, SharedWindow, "all_reduce", make)


def _barrier_of_oneself(stack: ExitStack) -> None:
    """The barriers are those of another communicator, here of this rank alone."""

    def make(before: Any) -> Any:
        return lambda window: alone().barrier()

    replaced(stack, SharedWindow, "meet", make)


def _freed_early(stack: ExitStack) -> None:
    """The window is freed after the second sum, while the gradients are still in it."""

    def make(before: Any) -> Any:
        def wrong(reduction: GradientAllReduce) -> None:
            before(reduction)
            reduction.__dict__["_sums"] = sums = reduction.__dict__.get("_sums", 0) + 1
            for exchange in reduction._exchanges if sums == 2 else ():
                if exchange.window is not None:
                    exchange.window.free()

        return wrong

    replaced(stack, GradientAllReduce, "all_reduce", make)


# -- gradients during backward -------------------------------------------------------------------------------------
def _overlapped(stack: ExitStack) -> None:
    """No bug: gradients are exchanged in small buckets during backward."""

    def make(before: Any) -> Any:
        def overlapped(reduction: GradientAllReduce, parameters: Any, comm: Communicator, *_: Any, **__: Any) -> None:
            before(reduction, parameters, comm, "mpi", True, 256)

        return overlapped

    replaced(stack, GradientAllReduce, "__init__", make)


def _bucket_not_awaited(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(bucket: Bucket) -> None:
            bucket.pending, bucket.completed = None, 0

        return wrong

    _overlapped(stack)
    replaced(stack, Bucket, "finish", make)


def _bucket_added_to(stack: ExitStack) -> None:
    """A gradient is scaled in the buffer that is being summed."""

    def make(before: Any) -> Any:
        def wrong(bucket: Bucket, comm: Communicator) -> None:
            before(bucket, comm)
            bucket._total[:1] *= 2
            bucket._total[:1] = 1

        return wrong

    _overlapped(stack)
    replaced(stack, Bucket, "start", make)


# -- messages ------------------------------------------------------------------------------------------------------
def _never_awaited(*tags: int) -> Plant:
    """Receives with these tags are not waited for."""

    def make(before: Any) -> Any:
        def wrong(comm: Communicator, array: np.ndarray, source: int, tag: int = 0) -> Pending:
            pending = before(comm, array, source, tag)
            return Pending(array, [], []) if tag in tags else pending

        return wrong

    return lambda stack: replaced(stack, Communicator, "ireceive", make)


def _buffers_in_turn(count: int) -> Plant:
    """All receives from one stage take `count` buffers in turn, one fewer than are in use; the first is the longest."""

    def make(before: Any) -> Any:
        buffers: dict[Any, list[np.ndarray]] = {}

        def wrong(comm: Communicator, array: np.ndarray, source: int, tag: int = 0) -> Pending:
            turn = buffers.setdefault((source, tag), [])
            turn.append(array if len(turn) < count else turn[-count])
            return before(comm, turn[-1][: array.size], source, tag)

        return wrong

    return lambda stack: replaced(stack, Communicator, "ireceive", make)


def _sent_from(staged: Callable[[dict[Any, np.ndarray], Any, np.ndarray], np.ndarray], clear: bool) -> Plant:
    """Stages send a copy of what they have made, from a buffer that is used again, or cleared, before it is sent."""

    def make(before: Any) -> Any:
        buffers: dict[Any, np.ndarray] = {}

        def wrong(messages: Messages, action: Any, array: np.ndarray) -> None:
            buffer = staged(buffers, (action.kind, action.stage, array.shape), array)
            before(messages, action, buffer)
            if clear:
                buffer[...] = 0

        return wrong

    return lambda stack: replaced(stack, Messages, "send", make)


def _one_buffer(buffers: dict[Any, np.ndarray], key: Any, array: np.ndarray) -> np.ndarray:
    buffer = buffers.setdefault(key, np.empty_like(array))
    buffer[...] = array
    return buffer


def _sends_not_awaited(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(messages: Messages) -> None:
            messages._sent = []

        return wrong

    replaced(stack, Messages, "finish", make)


# -- the list ------------------------------------------------------------------------------------------------------
_WINDOW = Layout(dp=2, microbatches=2)
_PIPE = Layout(pp=2, microbatches=4, schedule="1f1b")
_GPIPE = Layout(pp=2, microbatches=4, schedule="gpipe")
_ROWS = Layout(mp=2, split={"features": "rows"})
_OWT = Layout(dp=2, hybrid="owt", scheme="b")
_TREE = Layout(dp=2, microbatches=2, reproducible=True)

_EARLY, _WRITTEN, _LEFT = "before it was complete", "written to before its wait", "never waited for"

RACES: tuple[Mutant, ...] = (
    Mutant("race: window without its first barrier", "fully", _WINDOW, _without_barrier(1), (_EARLY,)),
    Mutant("race: window without its second barrier", "fully", _WINDOW, _without_barrier(2), (_EARLY,)),
    Mutant("race: window with the barriers of another communicator", "fully", _WINDOW, _barrier_of_oneself, (_EARLY,)),
    Mutant("race: window freed while gradients are in it", "images", _WINDOW, _freed_early, (_EARLY,)),
    Mutant("race: gradients taken before their bucket is summed", "fully", _WINDOW, _bucket_not_awaited, (_LEFT,)),
    Mutant("race: gradients changed while their bucket is summed", "fully", _WINDOW, _bucket_added_to, (_WRITTEN,)),
    Mutant("race: activations not waited for", "fully", _PIPE, _never_awaited(0, 1), (_LEFT, _EARLY)),
    Mutant("race: one buffer for all receives", "fully", _PIPE, _buffers_in_turn(1), (_WRITTEN, _EARLY)),
    Mutant("race: two buffers in turn where three are in use", "fully", _GPIPE, _buffers_in_turn(2), (_EARLY,)),
    Mutant(
        "race: send buffer cleared while it is sent",
        "fully",
        _PIPE,
        _sent_from(lambda buffers, key, array: array.copy(), clear=True),
        (_WRITTEN,),
    ),
    Mutant("race: one send buffer for all microbatches", "fully", _GPIPE, _sent_from(_one_buffer, False), (_WRITTEN,)),
    Mutant("race: sends not waited for", "fully", _PIPE, _sends_not_awaited, (_LEFT,)),
    Mutant("race: halo rows not waited for", "images", _ROWS, _never_awaited(TAG_SLICES), (_LEFT,)),
    Mutant("race: partner's summand not waited for", "fully", _TREE, _never_awaited(TAG_TREE), (_LEFT,)),
    Mutant("race: hybrid's parts not waited for", "images", _OWT, _never_awaited(ACTIVATIONS, GRADIENTS), (_LEFT,)),
)

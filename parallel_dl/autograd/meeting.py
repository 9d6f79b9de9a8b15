"""Nodes whose pullbacks meet other ranks: backward passes all of them, also those that do not lead to its root."""

from __future__ import annotations

import threading

from parallel_dl.autograd.tensor import Tensor


class _Awaited(threading.local):
    """`nodes`: number -> node that has not met the other ranks yet, oldest first; each thread has its own."""

    def __init__(self) -> None:
        self.nodes: dict[int, Tensor] = {}


_awaited = _Awaited()


def awaited() -> dict[int, Tensor]:
    """The nodes of this thread's collectives that backward has not passed: number -> node, oldest first."""
    return _awaited.nodes


def abandon() -> None:
    """Discards what was computed so far: later backward passes do not meet the other ranks in its collectives.

    For a program that continues after an error in a forward or backward pass; all ranks call it.
    """
    _awaited.nodes.clear()

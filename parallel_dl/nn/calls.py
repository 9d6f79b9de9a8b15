"""The module calls in progress: they show in which of its places in a network a layer is being called."""

from __future__ import annotations

import threading
from typing import Any


class Frames(threading.local):
    """`open`: (module that calls, the name by which it calls), the outermost first; each thread has its own.

    The name is None while a module runs that does not say which of its modules it calls.
    """

    def __init__(self) -> None:
        self.open: list[tuple[Any, str | None]] = []


frames = Frames()

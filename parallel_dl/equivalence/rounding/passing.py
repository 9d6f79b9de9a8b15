"""What passes through a place in a network: seen on its way back, or moved by as much as rounding does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.autograd import primitive

Array = np.ndarray


@primitive
def watched(x: Array, *, seen: Callable[[Array], None]) -> Any:
    """x; `seen` gets its gradient in backward."""

    def pullback(g: Array) -> Array:
        seen(g)
        return g

    return x, (pullback,)


@primitive
def rounded(x: Array, *, move: Callable[[Array], Array], back: Callable[[Array], Array] | None = None) -> Any:
    """`move(x)`; its gradient comes back through `back`, or through `move` as well."""
    return move(x), (move if back is None else back,)

"""The seed and the type of networks that have none of their own; each thread has its own settings.

They are context variables: a new thread begins with those of `contextvars.copy_context()` if it is run in that, else
with seed 0 and float32.
"""

from contextvars import ContextVar
from typing import Any

import numpy as np

_FLOAT32 = np.dtype(np.float32)
_TYPES = (np.float32, np.float64)

default_seed: ContextVar[int] = ContextVar("default_seed", default=0)
default_dtype: ContextVar[np.dtype] = ContextVar("default_dtype", default=_FLOAT32)


def manual_seed(seed: int) -> None:
    """The seed of every parameter filled and every mask drawn from now on by networks without a seed of their own."""
    default_seed.set(int(seed))


def set_default_dtype(dtype: Any) -> None:
    """The type of every parameter filled from now on by networks without a type of their own.

    float32 or float64; ValueError for another.
    """
    default_dtype.set(checked_dtype(dtype))


def checked_dtype(dtype: Any) -> np.dtype:
    """The NumPy type; ValueError for others than float32 and float64."""
    dtype = np.dtype(dtype)
    if dtype not in _TYPES:
        raise ValueError(f"dtype {dtype}: expected float32 or float64")
    return dtype

"""The default seed and dtype of networks that set none; each thread has its own settings.

They are context variables: a new thread that runs in `contextvars.copy_context()` starts with those settings, any other
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
    """Sets the seed for parameters filled and masks drawn from now on by networks without their own seed."""
    default_seed.set(int(seed))


def set_default_dtype(dtype: Any) -> None:
    """Sets the dtype of parameters filled from now on by networks without their own dtype.

    float32 or float64; ValueError for any other.
    """
    default_dtype.set(checked_dtype(dtype))


def checked_dtype(dtype: Any) -> np.dtype:
    """The NumPy type; ValueError for others than float32 and float64."""
    dtype = np.dtype(dtype)
    if dtype not in _TYPES:
        raise ValueError(f"dtype {dtype}: expected float32 or float64")
    return dtype

"""Freed memory stays with the process, until it ends: a training step asks for the same arrays again and again.

By default glibc gives large arrays back to the system when they are freed, and the next step pays for every page anew
(the system clears it first): that doubled the time of a LeNet's step. Elsewhere than on glibc nothing is changed, nor
when the user has tuned malloc by an environment variable.
"""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_TUNED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
_LARGE = 1 << 30  # bytes: larger arrays are given back
_LARGEST_IN_OLD_GLIBC = 1 << 25  # 32 MiB: older versions refuse more


def keep_freed_memory() -> None:
    """Tells malloc to keep freed memory."""
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in _TUNED):
        return
    malloc = ctypes.CDLL(None)
    if malloc.mallopt(_M_MMAP_THRESHOLD, _LARGE) or malloc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_OLD_GLIBC):
        malloc.mallopt(_M_TRIM_THRESHOLD, _LARGE)

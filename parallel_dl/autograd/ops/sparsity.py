"""Operations that let some elements through: where and dropout."""

import numpy as np

from parallel_dl.autograd.ops.elementwise import unbroadcast
from parallel_dl.autograd.tape import primitive


@primitive
def where(a, b, *, mask):
    """a where the boolean mask is true, b elsewhere; all three broadcast."""
    mask = np.asarray(mask, bool)
    return np.where(mask, a, b), (
        lambda g: unbroadcast(g * mask, a.shape),
        lambda g: unbroadcast(g * ~mask, b.shape),
    )


@primitive
def dropout(a, *, keep, p):
    """a / (1 - p) where the boolean array `keep` is true, 0 elsewhere (Srivastava et al. 2014, inverted form)."""
    factor = np.empty_like(a)  # in a's order of memory
    np.multiply(keep, np.asarray(1 / (1 - p) if p < 1 else 0, a.dtype), out=factor)
    return a * factor, (lambda g: g * factor,)

"""Matrix products and their pullbacks."""

import numpy as np

from parallel_dl.autograd.ops.elementwise import unbroadcast
from parallel_dl.autograd.tape import primitive


def _flat_rows(a):
    """(..., n) as a matrix of rows (rows, n)."""
    return a.reshape(-1, a.shape[-1]) if a.shape[-1] else a.reshape(int(np.prod(a.shape[:-1])), 0)


@primitive
def matmul(a, b):
    """a @ b as NumPy defines it: (..., n, k) @ (..., k, m), batch axes broadcast; a vector is a row or a column."""
    value = np.matmul(a, b)
    if a.ndim == 2 and b.ndim == 2:
        return value, (
            lambda g, out=None: np.matmul(g, b.T, out=out),
            lambda g, out=None: np.matmul(a.T, g, out=out),
        )
    rows = a if a.ndim > 1 else a[np.newaxis, :]
    columns = b if b.ndim > 1 else b[:, np.newaxis]

    def as_matrices(g):
        g = g if a.ndim > 1 else np.expand_dims(g, -1 if b.ndim == 1 else -2)
        return g if b.ndim > 1 else g[..., np.newaxis]

    def gradient_a(g):
        return unbroadcast(as_matrices(g) @ columns.swapaxes(-1, -2), rows.shape).reshape(a.shape)

    def gradient_b(g):
        if columns.ndim == 2:  # one product instead of a batch of them and a sum
            return (_flat_rows(rows).T @ _flat_rows(as_matrices(g))).reshape(b.shape)
        return unbroadcast(rows.swapaxes(-1, -2) @ as_matrices(g), columns.shape).reshape(b.shape)

    return value, (gradient_a, gradient_b)


@primitive
def linear(x, weight, bias=None):
    """x @ weight.T + bias for x (..., in), weight (out, in), bias (out,) or None; gives (..., out)."""
    value = np.matmul(x, weight.T)
    if bias is not None:
        value += bias
    if x.ndim == 2:
        return value, (
            lambda g: np.matmul(g, weight),
            lambda g, out=None: np.matmul(g.T, x, out=out),
            lambda g, out=None: np.matmul(_ones(len(g), g.dtype), g, out=out),
        )
    rows = _flat_rows(x)
    return value, (
        lambda g: np.matmul(g, weight),
        lambda g, out=None: np.matmul(_flat_rows(g).T, rows, out=out),
        lambda g, out=None: np.matmul(_ones(len(rows), g.dtype), _flat_rows(g), out=out),
    )


def _ones(length, dtype):
    """A vector of ones: ones @ g is the sum over rows, twice as fast as g.sum(0)."""
    return np.ones(length, dtype)

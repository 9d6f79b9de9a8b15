"""A fully connected layer over leaves: y = sum over input leaves i of x_i W_i^T, for each leaf of samples by itself.

Every product is of two blocks whose shapes the whole layer and the leaf of samples decide, of contiguous copies: BLAS
then gives the same bits on whichever rank it is computed. What is added up (inputs forward; outputs, and samples,
backward) is cut into leaves. What is not is computed all at a time, on a rank with a part of it with zeros in the place
of the rest; only in large layers it is computed leaf by leaf, too, so that ranks divide the work.
"""

from __future__ import annotations

import numpy as np

from parallel_dl.autograd import once, primitive
from parallel_dl.reproducible.leaves import Own, TreeSum, runs, sum_of_rows

SMALL = 1 << 16
"""values of a whole weight up to which dividing a product is not worth its calls"""


@primitive
def linear(x, weight, bias=None, *, inputs, outputs, together, leaves=None):
    """`ops.linear` over leaves: x (n, ..., in), weight (leaves, out, in), bias (leaves, out) or None; (n, ..., out).

    The samples are as many leaves as there are weights, which are all equal: so each leaf has a gradient of its own.
    With `leaves` the weight is (out, in), and its gradient is added up in the tree, leaf by leaf. `inputs` and
    `outputs` (`leaves.Own`) are the leaves that this rank has of either dimension. What is added up over leaves is this
    rank's part of the sum, where others have the rest. `together`: see above.
    """
    dtype = np.result_type(x, weight)
    n, w = len(x), (weight if leaves else weight[0]).astype(dtype, copy=False)
    width = len(w)
    per_sample = int(np.prod(x.shape[1:-1]))
    rows = np.ascontiguousarray(x.reshape(n * per_sample, x.shape[-1]), dtype)
    of_samples = runs(n, leaves or len(weight))
    xs = inputs.cut(rows, 1)  # (I, rows, block)
    value = np.empty((len(rows), width), dtype)
    for band in outputs.bands(together):
        ws = inputs.cut(band.fill(w, 0), 1)[:, np.newaxis].swapaxes(2, 3)  # (I, 1, block, N)
        _multiply(xs, ws, inputs, band, of_samples, per_sample, value)
    if bias is not None:
        value += bias[0]
    flat = once(lambda g: np.array(g.reshape(len(rows), width), dtype, order="C"))

    def gradient_x(g):
        gs, gradient = outputs.cut(flat(g), 1), np.empty_like(rows)  # gs (O, rows, block)
        for band in inputs.bands(together):
            ws = outputs.cut(band.fill(w, 1), 0)[:, np.newaxis]  # (O, 1, block, K)
            _multiply(gs, ws, outputs, band, of_samples, per_sample, gradient)
        return gradient.reshape(x.shape)

    def gradient_weight(g):
        if leaves is None:
            return of_leaves(g, of_samples, 0, len(weight))
        total = TreeSum()
        for leaf in range(leaves):
            own = [run for run in runs(n, leaves, 1) if run.leaves.start == leaf]
            total.add([of_leaves(g, own, leaf, 1)[0]])
        return total.total()[0]

    def of_leaves(g, of_samples, first, count):
        """(count, out, in): the gradients of the leaves from number `first` on."""
        gradient = np.zeros((count, *w.shape), dtype)
        for band_out in outputs.bands(together):
            of_outputs = band_out.fill(flat(g), 1)  # (rows, N)
            for band_in in inputs.bands(together):
                of_inputs = band_in.fill(rows, 1)  # (rows, K)
                for run in of_samples:
                    left, right = run.of(of_outputs, 0, per_sample), run.of(of_inputs, 0, per_sample)
                    product = np.matmul(left.swapaxes(1, 2), right)  # (count, N, K)
                    own = band_in.take(band_out.take(product, 1), 2)
                    numbers = slice(run.leaves.start - first, run.leaves.stop - first)
                    gradient[numbers, band_out.part, band_in.part] = own
        return gradient

    def gradient_bias(g):
        return sums_of_samples(flat(g), len(bias), n)

    return value.reshape(*x.shape[:-1], width), (gradient_x, gradient_weight, gradient_bias)


def _multiply(rows, weights, added, band, of_samples, per_sample, result) -> None:
    """A band of the result (rows, N), from rows (leaves, rows, block) times weights (leaves, 1, block, N), added up."""
    for run in of_samples:
        parts = np.matmul(run.of(rows, 1, per_sample), weights)  # (leaves, count, rows, N)
        run.of(result, 0, per_sample)[:, :, band.part] = band.take(added.add_up(parts), 2)


@primitive
def add_bias(y, bias):
    """y (n, ..., features) + bias (leaves, features), or y (n, channels, h, w) + bias (leaves, channels, 1, 1)."""

    def gradient(g):
        g = np.asarray(g, y.dtype)
        if bias.ndim == 2:
            rows = np.ascontiguousarray(g.reshape(int(np.prod(g.shape[:-1])), g.shape[-1]))
            return sums_of_samples(rows, len(bias), len(g))
        return sums_of_pixels(g, len(bias)).reshape(bias.shape)

    return y + bias[0], (lambda g: g, gradient)


def sums_of_samples(rows: np.ndarray, leaves: int, samples: int) -> np.ndarray:
    """Rows (samples per_sample, features), equally many per sample, added up in each leaf: (leaves, features)."""
    total = np.zeros((leaves, rows.shape[1]), rows.dtype)
    for run in runs(samples, leaves):
        total[run.leaves] = sum_of_rows(run.of(rows, 0, len(rows) // samples).swapaxes(0, 1))
    return total


def sums_of_pixels(images: np.ndarray, leaves: int) -> np.ndarray:
    """Images (samples, channels, h, w) added up over pixels and samples in each leaf: (leaves, channels)."""
    samples, channels, height, width = images.shape
    total = np.zeros((leaves, channels), images.dtype)
    for run in runs(samples, leaves):
        pixels = run.of(images).transpose(3, 4, 1, 0, 2)  # (h, w, size, count, channels)
        total[run.leaves] = sum_of_rows(pixels.reshape(height * width * run.size, run.count, channels))
    return total


def own_leaves(weight, *dimensions) -> tuple[Own, ...]:
    """The leaves of a parameter's first dimensions that are in its piece."""
    piece = weight.piece or ()
    return tuple(leaves.within(piece[axis] if axis < len(piece) else None) for axis, leaves in enumerate(dimensions))

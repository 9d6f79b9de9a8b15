"""A fully connected layer over leaves of its features: y = sum over input leaves of x_i W_oi^T, for each output leaf o.

Every product is of two blocks whose shapes the whole layer decides, of contiguous copies: BLAS then gives the same bits
on whichever rank it is computed. With I input and O output leaves a rank makes I O small products where an ordinary
layer makes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, once, primitive
from parallel_dl.reproducible.leaves import Leaves, Own, sum_of_rows


@primitive
def linear(x, weight, bias=None, *, inputs, outputs):
    """`ops.linear` over leaves: x (..., in), weight (out, in), bias (out,) or None; gives (..., out).

    `inputs` and `outputs` (`leaves.Own`) are the leaves that this rank has of either dimension. What is added up over
    leaves is this rank's part of the sum, where others have the rest.
    """
    dtype = np.result_type(x, weight)
    rows = x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
    xs = inputs.cut(rows.astype(dtype, copy=False), 1)  # (I, n, block)
    ws = inputs.cut(outputs.cut(weight.astype(dtype, copy=False), 0), 2)  # (I, O, block, block)
    parts = np.matmul(xs[:, np.newaxis], ws.swapaxes(2, 3))  # (I, O, n, block)
    value = outputs.join(inputs.add_up(parts), 1)
    if bias is not None:
        value += bias
    flat = once(lambda g: np.array(g.reshape(len(rows), g.shape[-1]), dtype, order="C"))
    cut = once(lambda g: outputs.cut(flat(g), 1))  # (O, n, block)

    def gradient_x(g):
        parts = np.matmul(cut(g), ws)  # (I, O, n, block)
        return inputs.join(outputs.add_up(parts.swapaxes(0, 1)), 1).reshape(x.shape)

    def gradient_weight(g):
        blocks = np.matmul(cut(g).swapaxes(1, 2), xs[:, np.newaxis])  # (I, O, block, block)
        return outputs.join(inputs.join(blocks, 2), 0)

    return value.reshape(*x.shape[:-1], value.shape[1]), (
        gradient_x,
        gradient_weight,
        lambda g: sum_over_samples(flat(g)),
    )


@primitive
def add_bias(y, bias):
    """y (n, features) or (n, channels, h, w) + bias (features or channels,), its gradient added up as in the layers.

    (..., features) is reshaped to rows before.
    """
    wide = bias.reshape(len(bias), *(1,) * (y.ndim - 2))
    return y + wide, (lambda g: g, lambda g: sum_over_samples(np.asarray(g, y.dtype)))


def sum_over_samples(g: np.ndarray) -> np.ndarray:
    """The gradient of a bias: g (n, features) or (n, channels, h, w) added up over all axes but the second."""
    rows = g.transpose(*range(2, g.ndim), 0, 1)
    return sum_of_rows(np.array(rows.reshape(int(np.prod(rows.shape[:-1])), g.shape[1]), order="C"))


@dataclass(frozen=True)
class LinearInLeaves:
    """What a Linear computes with: its leaves, all of them, of which a split layer's weight tells the rank's own."""

    inputs: Leaves
    outputs: Leaves

    def __call__(self, x: Any, weight: Any, bias: Any = None) -> Tensor:
        """As `ops.linear`."""
        outputs, inputs = own_leaves(weight, self.outputs, self.inputs)
        return linear(x, weight, bias, inputs=inputs, outputs=outputs)


def own_leaves(weight: Any, *dimensions: Leaves) -> tuple[Own, ...]:
    """The leaves of a parameter's first dimensions that are in its piece."""
    piece = weight.piece or ()
    return tuple(leaves.within(piece[axis] if axis < len(piece) else None) for axis, leaves in enumerate(dimensions))

"""Sharded matmul: a fully connected layer y = x W^T + b by several ranks at the same time.

With x (..., in) and W (out, in), rank r of P has

    output, or column:  the rows W_r of W:     y_r = x W_r^T + b_r    a slice of y; x is whole on every rank
    input, or row:      the columns W_r of W:  y = sum_r x_r W_r^T + b; x_r is a slice of x, and b is added once

(Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, section 3, names them after the columns and rows of W^T.) The
backward of the first sums the gradients of x over the ranks; that of the second needs no exchange. After an output
split and an element-wise layer, an input split takes the slices as they are, and the pair has one all-reduce forward
and one backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.errors import InputError, number_of, unknown_name
from parallel_dl.model_parallel.axis import ModelAxis, name_of, summed
from parallel_dl.model_parallel.pieces import cut
from parallel_dl.mpi import Communicator
from parallel_dl.reproducible import add_bias
from parallel_dl.splits.moves import to_split, to_whole
from parallel_dl.splits.placement import Placement, Sliced, Whole, even, slices

STATES = ("whole", "split")


class ColumnParallelLinear(nn.Linear):
    """A Linear whose output features are divided among the ranks of `comm`, else as nn.Linear.

    x is (..., in_features), the result (..., out_features), and slices are of the last axis. Shares are those of
    `partition.shares`: they may differ by one, and be empty. `input` says whether x is "whole", the same on every rank,
    or "split", a slice of features by rank, of `input_sizes` if they are not even. With `output` "split" each rank
    keeps its slice for the next layer; with "whole" they are gathered. weight and bias are this rank's rows, (share of
    out_features, in_features). All ranks call it together. Raises InputError for another input width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        comm: Communicator,
        bias: bool = True,
        input: str = "whole",
        output: str = "whole",
        input_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        sizes = even(out_features, comm.size)
        own = (slices(sizes)[comm.rank],)
        self.replace("weight", cut(self.weight, own))
        if self.bias is not None:
            self.replace("bias", cut(self.bias, own))
        before = _placement("input", input, in_features, comm, input_sizes)
        _placement("output", output, out_features, comm, None)
        arrive = to_whole(before, comm.size, replicated=False)
        depart = to_whole(Sliced(sizes), comm.size, replicated=True) if output == "whole" else ()
        ModelAxis(comm).move_around(self, arrive, depart, features_last=True)

    def describe(self) -> str:
        return f"{super().describe()}, output {self.weight.shape[0]} of {self.out_features}"


class RowParallelLinear(nn.Linear):
    """A Linear whose input features are divided among the ranks of `comm`, else as nn.Linear.

    x is (..., in_features), the result (..., out_features), and slices are of the last axis. `input` says whether x
    comes "split", a slice of features by rank, or "whole"; slices are of `sizes`, by default those of
    `partition.shares`. The result is whole on every rank. weight is this rank's columns, (out_features, size of the
    slice); bias is on every rank, and added once, after the sum. All ranks call it together. Raises InputError for
    another input width.
    """

    comm: Communicator
    label: str | None = None
    """what the ledger enters its sum under; None for its name in the whole network"""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        comm: Communicator,
        bias: bool = True,
        input: str = "split",
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.comm = comm
        given = even(in_features, comm.size) if sizes is None else tuple(sizes)
        before = _placement("input", input, in_features, comm, given)
        self.replace("weight", cut(self.weight, (slice(0, out_features), slices(given)[comm.rank])))
        ModelAxis(comm).move_around(self, to_split(before, given), (), features_last=True)

    def require(self, x: Any) -> None:
        """Raises InputError for an x of another width than this rank's slice."""
        if x.shape[-1] != self.weight.shape[1]:
            slice_of = f"needs (..., {self.weight.shape[1]}), its slice of {self.in_features}"
            whole = ' (for whole ones give input="whole")' if x.shape[-1] == self.in_features else ""
            raise self.input_error(x, slice_of + whole)

    def forward(self, x: Any) -> Tensor:
        self.require(x)
        comm = self.comm.labelled(self.label or name_of(self))
        y = summed((self.leaves or ops.linear)(x, self.weight), comm, features_last=True)
        if self.bias is None:
            return y
        if self.leaves is None:
            return ops.add(y, self.bias)
        shape = tuple(y.shape)
        rows = ops.reshape(y, shape=(math.prod(shape[:-1]), shape[-1]))
        return ops.reshape(add_bias(rows, self.bias), shape=shape)

    def describe(self) -> str:
        return f"{super().describe()}, input {self.weight.shape[1]} of {self.in_features}"


def _placement(what: str, state: str, width: int, comm: Communicator, sizes: Sequence[int] | None) -> Placement:
    if state not in STATES:
        raise unknown_name(what, str(state), STATES)
    given = even(width, comm.size) if sizes is None else tuple(sizes)
    if len(given) != comm.size or sum(given) != width or min(given) < 0:
        raise InputError(
            f"{what} sizes {given}: must be {number_of(comm.size, 'number')}, one per rank, that add up to {width}"
        )
    return Whole() if state == "whole" else Sliced(given)

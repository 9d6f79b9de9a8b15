"""How a run adds up: as it comes, or in leaves. The trainer asks for one of the two; nothing else knows of them.

In leaves, the operations that add up are computed by others (`autograd.computed_by`) while the network runs: layers
call the same operations as ever, and those take the place of each. A rank's samples go through the network together.
Each leaf of them has weights of its own, all equal, so that their gradients stay apart until all microbatches are
through: only then are they added up in the tree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from parallel_dl.autograd import Tensor, computed_by, ops
from parallel_dl.convolution import Geometry
from parallel_dl.nn import Module, Parameter
from parallel_dl.optim.norms import squares_of
from parallel_dl.partition import LEAVES
from parallel_dl.reproducible.convolution import Group, conv2d
from parallel_dl.reproducible.leaves import Leaves, Own, sum_of_leaves, sum_of_rows
from parallel_dl.reproducible.linear import SMALL, add_bias, linear
from parallel_dl.reproducible.losses import LeafLoss
from parallel_dl.reproducible.network import LayerLeaves
from parallel_dl.reproducible.reductions import (
    batch_norm,
    layer_norm,
    pixel_mean,
    squares_of_rows,
    synchronized_batch_norm,
)

Loss = Callable[..., Any]


class Summation:
    """Sums as they come, in the order that the layout gives them."""

    leaves: int | None = None
    """how many leaves a batch is cut into; None for a share per rank"""
    method: str | None = None
    """the all-reduce of gradients that it needs; None for any"""

    def over(self, comm: Any) -> Any:
        """The communicator to add up over its ranks with."""
        return comm

    def loss(self, loss: Loss) -> Loss:
        """The loss to train and test with."""
        return loss

    def gradients(self, accumulate: Callable[[], Sequence[float]], microbatches: int) -> float:
        """Runs forward and backward of the microbatches, and sets the gradients; returns the sum of the losses."""
        return sum(accumulate())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, what goes through the network is one leaf, or any samples."""
        yield

    # -- norms -----------------------------------------------------------------------------------------------------
    def squares_of(self, parameter: Parameter, array: np.ndarray | None) -> Any:
        """The sum of squares of the values, or gradient, of this rank's piece; or a row of summands of it."""
        return squares_of(parameter, array)

    def whole_squares(self, squares: np.ndarray) -> np.ndarray:
        """(..., parameters): the sums of squares of whole weights, from what was added up over the ranks."""
        return squares

    def sum_of_squares(self, squares: np.ndarray, parameters: Sequence[Parameter], axes: Sequence[Any]) -> float:
        """Of all parameters of the network, from those of this rank; `axes` are the ranks with others and with pieces.

        The communicators are first that of the ranks that share layers, and then that of the stages.
        """
        own = squares.sum(keepdims=True)
        for axis in axes:
            if axis.size > 1:
                own = axis.all_reduce(own)
        return float(own[0])


class _Known(NamedTuple):
    """A weight while the network runs."""

    parameter: Parameter
    tensor: Tensor
    """(leaves, ...): the weight of each leaf, or what was taken from it; or the parameter itself"""
    rows: slice
    """what it is of the parameter's first axis"""


class InLeaves(Summation):
    """Sums in leaves, for a network that was cut (`cut_into_leaves`), on one of `ranks` replicas."""

    leaves = LEAVES
    method = "tree"

    def __init__(self, network: Module, ranks: int) -> None:
        self.network = network
        self.own = LEAVES // ranks
        self._at_a_time = self.own
        self.names = {name: number for number, (name, _) in enumerate(network.named_parameters())}
        self._known: dict[int, _Known] = {}
        self._cut: dict[
            int, tuple[Any, LayerLeaves | None]
        ] = {}  # id -> the weight, so that it is no other's, and its leaves
        self._losses, self._one_microbatch = np.zeros(self.own), False
        self._substitutes: dict[Any, Callable[..., Any]] = {
            ops.linear: self._linear,
            ops.conv2d: self._conv2d,
            ops.mean: self._mean,
            ops.layer_norm: self._layer_norm,
            ops.batch_norm: self._batch_norm,
            ops.synchronized_batch_norm: self._synchronized_batch_norm,
            ops.add: self._add,
            ops.index: self._index,
            ops.reshape: self._reshape,
        }

    def over(self, comm: Any) -> Any:
        return comm.in_tree()

    def loss(self, loss: Loss) -> Loss:
        return LeafLoss(loss, lambda: self._at_a_time, self._report)

    def gradients(self, accumulate: Callable[[], Sequence[float]], microbatches: int) -> float:
        self._losses, self._one_microbatch = np.zeros(self.own), microbatches == 1
        try:
            with computed_by(self._substitutes):
                accumulate()
            for known in self._known.values():
                own = known.tensor.is_leaf and known.tensor is not known.parameter
                if own and known.tensor.grad is not None:
                    _give(known.parameter, sum_of_leaves(known.tensor.grad))
        finally:
            self._known.clear()
        return float(sum_of_leaves(self._losses))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self._at_a_time = 1
        try:
            with computed_by(self._substitutes):
                yield
        finally:
            self._at_a_time = self.own
            self._known.clear()

    def _report(self, losses: np.ndarray) -> None:
        self._losses = self._losses + losses

    # -- norms -----------------------------------------------------------------------------------------------------
    def squares_of(self, parameter: Parameter, array: np.ndarray | None) -> np.ndarray:
        """(LEAVES,): a summand for each leaf of the first axis, which its own tree over the second axis has made.

        All rows of a leaf are added up before that: of the tree's last sums each rank may have a part.
        """
        found = np.zeros(LEAVES)
        if array is None or not array.size:
            return found
        outputs, inputs = self._own(parameter)
        rows = outputs.cut(squares_of_rows(array, inputs), 1)  # (O, I, block)
        own = slice(outputs.first, outputs.first + len(outputs.sizes))
        found[own] = inputs.add_up(sum_of_rows(rows.transpose(2, 1, 0)))
        return found

    def whole_squares(self, squares: np.ndarray) -> np.ndarray:
        return sum_of_leaves(np.moveaxis(squares, -1, 0))

    def sum_of_squares(self, squares: np.ndarray, parameters: Sequence[Parameter], axes: Sequence[Any]) -> float:
        model, pipe = axes
        whole = self.whole_squares(model.all_reduce(squares) if model.size > 1 else squares)
        of_all = np.zeros(len(self.names))
        of_all[[self.names[parameter.name] for parameter in parameters]] = whole
        return math.fsum(pipe.all_reduce(of_all) if pipe.size > 1 else of_all)  # rounded once: in any order

    def _own(self, parameter: Parameter) -> tuple[Own, Own]:
        """The leaves of a parameter's first two axes that this rank has; of the second only if it has one."""
        whole = [*parameter.whole_shape, 1, 1][:2] if parameter.whole_shape else [1, 1]
        known, leaves = self._leaves(parameter), [Leaves.even(length) for length in whole]
        if known is not None:
            cut = (known.outputs, known.inputs)
            leaves = [other if sum(other.sizes) == length else own for own, other, length in zip(leaves, cut, whole)]
        piece = [*(parameter.piece or ()), None, None]
        return leaves[0].within(piece[0]), leaves[1].within(piece[1])

    # -- weights ---------------------------------------------------------------------------------------------------
    def _weight(self, tensor: Any) -> _Known | None:
        """The weight that this is, or is taken from; None for none."""
        known = self._known.get(id(tensor))
        if known is None and isinstance(tensor, Parameter):
            made: Tensor = tensor
            if not self._is_added_up_at_once(tensor):
                of_leaves = np.broadcast_to(tensor.data, (self._at_a_time, *tensor.shape))
                made = Tensor(of_leaves, requires_grad=tensor.requires_grad)
            known = self._known[id(tensor)] = _Known(tensor, made, slice(0, tensor.shape[0]))
        return known

    def _is_added_up_at_once(self, weight: Parameter) -> bool:
        """Whether gradients of all leaves would take much memory, and need not wait for others of the same weight."""
        leaves = self._leaves(weight)
        large = len(weight.whole_shape) == 2 and not _is_small(weight)
        return large and self._one_microbatch and leaves is not None and leaves.is_alone

    def _weight_and_leaves(self, weight: Any) -> tuple[_Known, LayerLeaves]:
        known = self._weight(weight)
        assert known is not None
        leaves = self._leaves(known.parameter)
        assert leaves is not None
        return known, leaves

    def _of_leaves(self, tensor: Any) -> Any:
        known = self._weight(tensor)
        return tensor if known is None else known.tensor

    def _taken(self, known: _Known, operation: Callable[..., Tensor], static: dict[str, Any], rows: slice) -> Tensor:
        """What the operation makes of the weight, which is noted."""
        with computed_by({}):
            tensor = operation(known.tensor, **static)
        self._known[id(tensor)] = _Known(known.parameter, tensor, rows)
        return tensor

    def _leaves(self, weight: Parameter) -> LayerLeaves | None:
        """Those of the layer that has the weight; None for one that is never cut."""
        if id(weight) not in self._cut:
            for _, module in self.network.named_modules():
                for parameter in module._parameters.values():
                    self._cut.setdefault(id(parameter), (parameter, getattr(module, "leaves", None)))
        return self._cut[id(weight)][1]

    # -- operations ------------------------------------------------------------------------------------------------
    def _linear(self, x: Any, weight: Any, bias: Any = None) -> Tensor:
        known, leaves = self._weight_and_leaves(weight)
        rows, columns, *_ = _slices(known)
        return linear(
            x,
            known.tensor,
            self._of_leaves(bias),
            inputs=leaves.inputs.within(columns),
            outputs=leaves.outputs.within(rows),
            together=_is_small(known.parameter),
            leaves=self._at_a_time if known.tensor is known.parameter else None,
        )

    def _conv2d(self, x: Any, weight: Any, bias: Any = None, *, groups: int = 1, method: str = "", **sizes: Any) -> Any:
        known, leaves = self._weight_and_leaves(weight)
        rows, columns, *_ = _slices(known)
        Geometry.of(x.shape, known.tensor.shape[1:], groups=groups, **sizes)  # refuses what does not fit
        return conv2d(
            x,
            known.tensor,
            self._of_leaves(bias),
            groups=groups_of(leaves, rows, columns, groups),
            together=_is_small(known.parameter),
            **sizes,
        )

    def _mean(self, x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        return pixel_mean(x) if axis == (2, 3) and keepdims else NotImplemented

    def _layer_norm(self, x: Any, weight: Any = None, bias: Any = None, **static: Any) -> Tensor:
        return layer_norm(x, self._of_leaves(weight), self._of_leaves(bias), leaves=self._at_a_time, **static)

    def _batch_norm(self, x: Any, weight: Any = None, bias: Any = None, *, mean: Any = None, **static: Any) -> Any:
        if mean is not None:
            return NotImplemented
        own = self._of_leaves(weight), self._of_leaves(bias)
        return batch_norm(x, *own, leaves=self._at_a_time, total=lambda sums: sums, **static)

    def _synchronized_batch_norm(self, x: Any, weight: Any = None, bias: Any = None, **static: Any) -> Any:
        own = self._of_leaves(weight), self._of_leaves(bias)
        return synchronized_batch_norm(x, *own, leaves=self._at_a_time, **static)

    def _add(self, a: Any, b: Any) -> Any:
        known = self._weight(b)
        return NotImplemented if known is None else add_bias(a, known.tensor)

    def _index(self, a: Any, *, index: Any) -> Any:
        known = self._weight(a)
        if known is None or not isinstance(index, slice):
            return NotImplemented
        start, stop, _ = index.indices(known.rows.stop - known.rows.start)
        rows = slice(known.rows.start + start, known.rows.start + stop)
        return self._taken(known, ops.index, {"index": (slice(None), slice(start, stop))}, rows)

    def _reshape(self, a: Any, *, shape: Any) -> Any:
        known = self._weight(a)
        if known is None:
            return NotImplemented
        return self._taken(known, ops.reshape, {"shape": (self._at_a_time, *shape)}, known.rows)


def _is_small(weight: Parameter) -> bool:
    return int(np.prod(weight.whole_shape)) <= SMALL


def _slices(known: _Known) -> Sequence[slice]:
    """Where the first two axes of the weight, or what was taken of it, lie in the whole."""
    whole = [slice(0, length) for length in known.parameter.whole_shape]
    piece = [*(known.parameter.piece or ()), *whole[len(known.parameter.piece or ()) :]]
    first = piece[0].start
    return slice(first + known.rows.start, first + known.rows.stop), *piece[1:]


def groups_of(leaves: LayerLeaves, rows: slice, columns: slice, groups: int) -> list[Group]:
    """The groups of a convolution of the filters `rows` of the layer, which see its channels `columns`."""
    if leaves.groups == 1:
        every = slice(None)
        return [Group(every, every, leaves.outputs.within(rows), leaves.inputs.within(columns))]
    wide, deep = sum(leaves.outputs.sizes) // leaves.groups, columns.stop
    found, first = [], rows.start // wide if wide else 0
    for number in range(first, first + groups):
        whole = slice(number * wide, (number + 1) * wide)
        part = slice(max(rows.start, whole.start), min(rows.stop, whole.stop))
        if part.start < part.stop:
            filters = slice(part.start - rows.start, part.stop - rows.start)
            channels = slice((number - first) * deep, (number - first + 1) * deep)
            found.append(Group(filters, channels, leaves.outputs.within(part, whole), Leaves((deep,)).within()))
    return found


def _give(parameter: Parameter, gradient: np.ndarray) -> None:
    """Makes it the parameter's gradient, in the place where that is to live."""
    buffer = parameter.grad_buffer
    if buffer is None:
        parameter.grad = gradient
    else:
        buffer[...] = gradient
        parameter.grad = buffer

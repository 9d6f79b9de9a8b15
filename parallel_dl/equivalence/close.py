"""`assert_close_to_serial`: is a value that ranks have computed together the serial one, and if not, why?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor
from parallel_dl.equivalence.compare import patterns
from parallel_dl.equivalence.compare.arrays import BOUNDS
from parallel_dl.errors import InputError
from parallel_dl.mesh import Partial, Replicated, Shard
from parallel_dl.mpi import Communicator, world
from parallel_dl.watchdog.picture import named

Array = np.ndarray
Placement = Replicated | Partial | Shard


def assert_close_to_serial(
    value: Any,
    expected: Any,
    comm: Communicator | None = None,
    placement: Placement | None = None,
    bound: float | None = None,
) -> None:
    """Raises AssertionError, on every rank, unless the ranks' values are the serial one; all ranks call it.

    `value` is what this rank has of it, an array or a Tensor: by `placement` the whole value (`Replicated()`, the
    default), a summand (`Partial()`), or a slice (`Shard(axis, sizes)`). `expected` is the whole serial value, the same
    on all ranks. `comm` is the world by default. They are close if they differ by at most `bound` (1e-10 in float64,
    1e-5 in float32) of the largest value. The message names the likely cause: a sum or a gather that is missing, a
    factor, a bias that each rank has added, shards in another order, exchanged axes. InputError for another placement.
    """
    __tracebackhide__ = True
    comm = world() if comm is None else comm
    placement = Replicated() if placement is None else placement
    if not isinstance(placement, Placement):
        raise InputError(f"placement {placement!r}: expected Replicated(), Partial() or Shard(axis)")
    own, wanted = (np.asarray(one.data if isinstance(one, Tensor) else one) for one in (value, expected))
    values = comm.all_gather_object(own)
    limit = BOUNDS.get(str(own.dtype), 1e-10) if bound is None else bound
    fault = _fault([one.astype(float) for one in values], wanted.astype(float), placement, limit)
    if fault is not None:
        raise AssertionError(fault)


def _fault(values: Sequence[Array], wanted: Array, placement: Placement, bound: float) -> str | None:
    """What is wrong, in one line; None if nothing is."""
    try:
        found = _whole(values, placement)
    except ValueError as error:
        shapes = ", ".join(str(one.shape) for one in values)
        line = f"the ranks' values do not fit together ({error}): shapes {shapes}; the serial one is {wanted.shape}"
        axis = _other_axis(values, wanted, placement, max(bound, patterns.SAME))
        return line if axis is None else f"{line}; likely {_of_axis(axis, placement)}"
    worst = [_error(one, wanted) for one in found]
    if all(error <= bound for error in worst):
        return None
    rank = int(np.argmax(worst))
    where = f" on rank {rank}" if len(found) > 1 else ""
    if found[rank].shape != wanted.shape:
        head = f"shape {found[rank].shape}{where}, serially {wanted.shape}"
    else:
        head = f"off{where} by {worst[rank]:.1e} of the largest value (bound {bound:.0e})"
    cause = _cause(values, found, worst, wanted, placement, bound)
    return f"{head}; likely {cause}" if cause else head


def _whole(values: Sequence[Array], placement: Placement) -> list[Array]:
    """The whole values: each rank's, of a replicated one, else the one that they make together."""
    if isinstance(placement, Replicated):
        return list(values)
    if isinstance(placement, Partial):
        return [np.sum(values, axis=0)]
    return [np.concatenate(values, axis=placement.axis)]


def _error(a: Array, b: Array) -> float:
    return patterns.error(a, b) if a.shape == b.shape else float("inf")


def _cause(
    values: Sequence[Array],
    found: Sequence[Array],
    worst: Sequence[float],
    wanted: Array,
    placement: Placement,
    bound: float,
) -> str:
    size, tolerance = len(values), max(bound, patterns.SAME)
    if isinstance(placement, Replicated) and size > 1:
        if said := _of_copies(values, wanted, tolerance):
            return said
        right = [rank for rank, error in enumerate(worst) if error <= bound]
        if right:
            wrong = [rank for rank in range(size) if rank not in right]
            return f"only {named(wrong)}: {named(right)} {'has' if len(right) == 1 else 'have'} the serial value"
    if (axis := _other_axis(values, wanted, placement, tolerance)) is not None:
        return _of_axis(axis, placement)
    one = found[int(np.argmax(worst))]
    if one.shape == wanted.shape:
        factor = patterns.factor(wanted, one, tolerance)
        if factor is not None and abs(factor) > tolerance:
            return _of_factor(factor, size)
        if said := _of_bias(one, wanted, size, tolerance):
            return said
        order = patterns.order_of_slices(wanted, one, range(2, 2 * size + 1), tolerance=tolerance)
        if order is not None:
            return f"its slices along axis {order[0]} are in another order: {', '.join(map(str, order[1]))}"
    turned = patterns.exchanged_axes(wanted, one, tolerance)
    return f"its axes are exchanged: they are the serial ones in the order {turned}" if turned is not None else ""


def _other_axis(values: Sequence[Array], wanted: Array, placement: Placement, tolerance: float) -> int | None:
    """The axis along which the ranks' slices are the serial value, if it is another one."""
    if not isinstance(placement, Shard):
        return None
    axes = [axis for axis in range(wanted.ndim) if axis != placement.axis]
    return next((axis for axis in axes if _fit(values, wanted, axis, tolerance)), None)


def _of_axis(axis: int, placement: Placement) -> str:
    return f"the ranks' slices are along axis {axis}, not along axis {getattr(placement, 'axis', None)}"


def _fit(values: Sequence[Array], wanted: Array, axis: int, tolerance: float) -> bool:
    """Whether these are the slices of the serial value along this axis."""
    lengths = [one.shape[axis] if one.ndim == wanted.ndim else -1 for one in values]
    others = {tuple(np.delete(one.shape, axis)) for one in values if one.ndim == wanted.ndim}
    if sum(lengths) != wanted.shape[axis] or len(others) != 1:
        return False
    return patterns.close(wanted, np.concatenate(values, axis=axis), tolerance)


def _of_copies(values: Sequence[Array], wanted: Array, tolerance: float) -> str:
    """Each rank has something else, of which the whole could be made."""
    if all(np.array_equal(one, values[0]) for one in values):
        return ""
    if len({one.shape for one in values}) == 1 and patterns.close(wanted, np.sum(values, axis=0), tolerance):
        return "each rank has a summand: an all_reduce is missing"
    for axis in range(wanted.ndim):
        if _fit(values, wanted, axis, tolerance):
            return f"each rank has a slice along axis {axis}: an all_gather is missing"
    return ""


def _of_factor(factor: float, size: int) -> str:
    if size > 1 and abs(factor - size) < patterns.SAME * size:
        return f"{size} times too large: it is summed over ranks that all have the whole"
    if size > 1 and abs(factor * size - 1) < patterns.SAME:
        return f"1/{size} of it: divided by the number of ranks once too often, or a sum over them is missing"
    return "a wrong sign" if abs(factor + 1) < patterns.SAME else f"a factor {factor:.6g}"


def _of_bias(one: Array, wanted: Array, size: int, tolerance: float) -> str:
    """The same difference for all samples, the rows: a bias that was added too often, or not at all."""
    if wanted.ndim < 2 or wanted.shape[0] < 2:
        return ""
    difference = one - wanted
    largest = float(np.abs(wanted).max())
    if not largest or float(np.abs(difference - difference[:1]).max()) > tolerance * largest:
        return ""
    often = f"added on each of the {size} ranks instead of once, or " if size > 1 else ""
    return f"a bias that is {often}left out: all samples differ by the same values"

"""Differentiable movements of tensors between ranks: each is a linear operator, written next to its adjoint.

Over a communicator a value is *replicated* (the same on every rank, counted once), *sharded* (each rank has a slice),
*partial* (each rank has a summand) or *rooted* (on one rank only); sharded and partial are both *varying*.

| operation         | type                  | forward                                      | adjoint              |
|-------------------|-----------------------|----------------------------------------------|----------------------|
| `replicate`       | replicated -> varying | identity: each rank goes its own way with it | `all_reduce`         |
| `all_reduce`      | partial -> replicated | sum                                          | `replicate`          |
| `shard`           | replicated -> sharded | keep own slice                               | `unshard`            |
| `unshard`         | sharded -> replicated | concatenate                                  | `shard`              |
| `all_gather`      | sharded -> varying    | concatenate, then each goes its own way      | `reduce_scatter`     |
| `reduce_scatter`  | partial -> sharded    | sum, keep own slice                          | `all_gather`         |
| `all_to_all`      | sharded -> sharded    | from slices along one axis to another        | `all_to_all` back    |
| `shift`           | sharded -> varying    | from the rank `offset` before                | `shift` by `-offset` |
| `exchange_slices` | sharded -> varying    | copies of any rows, from their owners        | sums, at the owner   |
| `exchange_halo`   | sharded -> varying    | also the rows around the own slice           | sums, at the owner   |
| `broadcast`       | rooted -> varying     | copies                                       | `reduce`             |
| `reduce`          | varying -> rooted     | sum                                          | `broadcast`          |
| `scatter`         | rooted -> varying     | slices                                       | `gather`             |
| `gather`          | varying -> rooted     | concatenate                                  | `scatter`            |

A distributed layer is local maths between two movements; its backward comes for free. All ranks of `comm` call a
movement together. If its adjoint communicates, they meet again in backward, in reverse order; a rank whose own gradient
does not need it contributes zeros (see `autograd.primitive`). So every rank must run backward from a tensor newer than
the movement.

Rooted tensors: ranks other than `root` may pass None, and get an empty tensor on which they can call backward.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from parallel_dl import partition
from parallel_dl.autograd import Tensor, is_grad_enabled, primitive
from parallel_dl.errors import number_of
from parallel_dl.mpi import buffers
from parallel_dl.mpi.buffers import Array
from parallel_dl.mpi.communicator import Communicator
from parallel_dl.mpi.shards import Sizes


def movement(function: Callable | None = None, *, collective: bool = False, rooted: bool = False) -> Any:
    """Turns a function on arrays, `f(x, comm, ...) -> (value, pullback)`, into an operation on tensors.

    `collective`: the pullback communicates; it then gets gradients of the value's dtype, the same on all ranks.
    `rooted`: x may be None on ranks other than the root, and is a tensor on every rank, so that all of them meet.
    """
    if function is None:
        return functools.partial(movement, collective=collective, rooted=rooted)
    name = function.__name__
    static_names = list(inspect.signature(function).parameters)[2:]

    def on_arrays(x: Any, *, comm: Communicator, **static: Any) -> Any:
        value, pullback = function(x, comm, **static)
        if not collective:
            return value, (pullback,)

        def together(g: Array) -> Array:
            if comm.is_freed:
                raise RuntimeError(
                    f"backward of a {name} whose communicator was freed: run backward before free(), "
                    "and use no_grad() for a forward without backward"
                )
            return pullback(np.asarray(g, value.dtype))

        return value, (together,)

    operation = primitive(on_arrays, collective=collective)

    @functools.wraps(function)
    def apply(x: Any, comm: Communicator, *arguments: Any, **static: Any) -> Tensor:
        static.update(zip(static_names, arguments, strict=False))
        if rooted and not isinstance(x, Tensor):
            x = Tensor(np.empty(0, np.float32) if x is None else x)
        if comm.checked and collective:
            recorded = is_grad_enabled() and isinstance(x, Tensor)
            comm.announce(f"collectives.{name}", "gradients recorded" if recorded else "no gradients recorded")
        return operation(x, comm=comm, **static)

    return apply


# -- replicated, partial -------------------------------------------------------------------------------------------
@movement(collective=True)
def replicate(x: Array, comm: Communicator) -> Any:
    """The same tensor, used differently by each rank from here on, so its gradients are summed."""
    return x, lambda g: comm.all_reduce(g)


@movement
def all_reduce(x: Array, comm: Communicator) -> Any:
    """The sum over the ranks, used in the same way by all ranks from here on."""
    return comm.all_reduce(x), lambda g: g


# -- sharded -------------------------------------------------------------------------------------------------------
@movement(collective=True)
def shard(x: Array, comm: Communicator, axis: int = 0, sizes: Sizes = None) -> Any:
    """This rank's slice along `axis` (`sizes` by rank; partition.shares) of a tensor that is the same on every rank."""
    sizes = partition.shares(x.shape[axis], comm.size) if sizes is None else list(sizes)
    if len(sizes) != comm.size or sum(sizes) != x.shape[axis]:
        raise ValueError(f"sizes {sizes} do not cut a length of {x.shape[axis]} into {comm.size} shards")
    return _slice_of(x, comm, axis, sizes), lambda g: comm.all_gather(g, axis, sizes)


@movement
def unshard(x: Array, comm: Communicator, axis: int = 0, sizes: Sizes = None) -> Any:
    """The ranks' slices concatenated along `axis`, used in the same way by all ranks from here on."""
    sizes = comm.shard_sizes(x.shape[axis]) if sizes is None else sizes
    return comm.all_gather(x, axis, sizes), lambda g: _slice_of(g, comm, axis, sizes)


@movement(collective=True)
def all_gather(x: Array, comm: Communicator, axis: int = 0, sizes: Sizes = None) -> Any:
    """The ranks' slices concatenated along `axis`, used differently by each rank from here on."""
    sizes = comm.shard_sizes(x.shape[axis]) if sizes is None else sizes
    return comm.all_gather(x, axis, sizes), lambda g: comm.reduce_scatter(g, axis, sizes)


@movement(collective=True)
def reduce_scatter(x: Array, comm: Communicator, axis: int = 0, sizes: Sizes = None) -> Any:
    """This rank's slice along `axis` (`sizes` by rank; partition.shares) of the sum over the ranks."""
    sizes = partition.shares(x.shape[axis], comm.size) if sizes is None else sizes
    return comm.reduce_scatter(x, axis, sizes), lambda g: comm.all_gather(g, axis, sizes)


@movement(collective=True)
def all_to_all(
    x: Array,
    comm: Communicator,
    split_axis: int,
    concat_axis: int,
    split_sizes: Sizes = None,
    concat_sizes: Sizes = None,
) -> Any:
    """From slices along `concat_axis` to slices along `split_axis` (`split_sizes` by rank; partition.shares)."""
    split_sizes = partition.shares(x.shape[split_axis], comm.size) if split_sizes is None else split_sizes
    concat_sizes = comm.shard_sizes(x.shape[concat_axis]) if concat_sizes is None else concat_sizes
    value = comm.all_to_all(x, split_axis, concat_axis, split_sizes, concat_sizes)
    return value, lambda g: comm.all_to_all(g, concat_axis, split_axis, concat_sizes, split_sizes)


# -- copies from other ranks' slices -------------------------------------------------------------------------------
@movement(collective=True)
def shift(x: Array, comm: Communicator, offset: int, cyclic: bool = True) -> Any:
    """The tensor of rank - offset; without `cyclic`, zeros of x's shape on a rank that has no such rank."""
    return comm.shift(x, offset, cyclic), lambda g: comm.shift(g, -offset, cyclic, shape=x.shape)


@movement(collective=True)
def exchange_slices(x: Array, comm: Communicator, axis: int, owned: Sequence[slice], wanted: Sequence[slice]) -> Any:
    """Rows `wanted[rank]` along `axis` of the whole, of which rank r has `owned[r]`; all ranks know both lists."""
    value = comm.exchange_slices(x, axis, owned, wanted)
    return value, lambda g: comm.return_slices(g, axis, owned, wanted)


def exchange_halo(x: Any, comm: Communicator, axis: int, before: int, after: int, sizes: Sizes = None) -> Tensor:
    """This rank's slice with `before` rows before and `after` rows after it, however many ranks away.

    Nothing is added beyond the ends of the whole tensor, so the first and last ranks get fewer rows. If `sizes`, the
    lengths of the slices by rank, is given, these are not exchanged.
    """
    if before < 0 or after < 0:
        raise ValueError(f"a halo of {number_of(before, 'row')} before and {after} after: neither can be negative")
    sizes = comm.shard_sizes(x.shape[axis]) if sizes is None else sizes
    owned = [slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]
    total = sum(sizes)
    wanted = [slice(max(0, own.start - before), min(total, own.stop + after)) for own in owned]
    return exchange_slices(x, comm, axis=axis, owned=owned, wanted=wanted)


# -- rooted --------------------------------------------------------------------------------------------------------
@movement(collective=True, rooted=True)
def broadcast(x: Array, comm: Communicator, root: int = 0) -> Any:
    """`root`'s tensor on every rank, used differently by each rank from here on."""

    def pullback(g: Array) -> Array:
        total = comm.reduce(g, root)
        return np.zeros_like(x) if total is None else total

    return comm.broadcast(x, root), pullback


@movement(collective=True, rooted=True)
def reduce(x: Array, comm: Communicator, root: int = 0) -> Any:
    """The sum over the ranks, on `root`; an empty tensor on the others."""
    total = comm.reduce(x, root)
    value = np.empty(0, x.dtype) if total is None else total
    return value, lambda g: comm.broadcast(g, root, x.shape, value.dtype)


@movement(collective=True, rooted=True)
def scatter(x: Array, comm: Communicator, root: int = 0, axis: int = 0, sizes: Sizes = None) -> Any:
    """This rank's slice along `axis` (`sizes` by rank; partition.shares) of `root`'s tensor."""

    def pullback(g: Array) -> Array:
        whole = comm.gather(g, root, axis, sizes)
        return np.zeros_like(x) if whole is None else whole

    return comm.scatter(x, root, axis, sizes), pullback


@movement(collective=True, rooted=True)
def gather(x: Array, comm: Communicator, root: int = 0, axis: int = 0, sizes: Sizes = None) -> Any:
    """The ranks' slices concatenated along `axis`, on `root`; an empty tensor on the others."""
    sizes = comm.shard_sizes(x.shape[axis]) if sizes is None else sizes
    whole = comm.gather(x, root, axis, sizes)
    value = np.empty(0, x.dtype) if whole is None else whole
    return value, lambda g: comm.scatter(g, root, axis, sizes)


def _slice_of(array: Array, comm: Communicator, axis: int, sizes: Sequence[int]) -> Array:
    start = sum(sizes[: comm.rank])
    index: list[Any] = [slice(None)] * array.ndim
    index[buffers.normal_axis(axis, array.ndim)] = slice(start, start + sizes[comm.rank])
    return array[tuple(index)]

"""Parameters laid end to end in flat arrays: one update, one all-reduce for all of them, without copies.

The weights of a network become views of one flat array, and backward writes their gradients into views of another. An
optimizer then updates everything with a handful of NumPy calls, and data parallelism sums one array.

A weight or a gradient may move at any time: by another optimizer, another all-reduce, an assignment to `.data`, or a
copy of the network. So `Stretch.gradients` checks each time, and its caller lays the flat arrays out again if it
returns None.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from typing import NamedTuple

import numpy as np

from parallel_dl.nn.parameter import Parameter

_ALIGNMENT = 64  # bytes, a cache line: where each parameter begins
BLOCK = 65536  # values that an update passes over at a time: they stay in the cache, and calls stay few


class FlatParameters:
    """The weights of parameters of one dtype, end to end (each begins on a cache line; the gaps are zero).

    `values` (size,) holds them, `slices` gives the slice of each, and `views` are the arrays used as their `.data`.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = list(parameters)
        self.dtype = self.parameters[0].data.dtype
        self.slices, self.size = laid_out([parameter.size for parameter in self.parameters], self.dtype.itemsize)
        self.values = aligned_zeros(self.size, self.dtype)
        self.views = views(self.values, self.slices, self.parameters)
        self._place = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        self._sources = [weakref.ref(parameter.data) for parameter in self.parameters]
        for view, parameter in zip(self.views, self.parameters):
            view[...] = parameter.data
        for view, parameter in zip(self.views, self.parameters):
            parameter.data = view
            parameter.flat = self

    def holds(self, parameter: Parameter, since: np.ndarray | None = None) -> bool:
        """Whether the parameter's values are here now and, given `since`, were moved here from that array."""
        place = self._place.get(id(parameter))
        if place is None or parameter.data is not self.views[place]:
            return False
        return since is None or self._sources[place]() is since

    def start(self, parameter: Parameter) -> int:
        """The index at which the parameter's values begin."""
        return self.slices[self._place[id(parameter)]].start


class FlatGradients:
    """Where backward writes the gradients of parameters of one dtype: `local` (size,), laid out as `FlatParameters`.

    `total`, of the same size and layout, will hold their sum over the ranks, if there is one: None, or an array, which
    is `local` itself if summed in place. `views` and `total_views` are the individual gradients. Existing writable
    gradients of the parameters are moved here; a sum over the ranks, which is read-only, stays where it is.
    """

    def __init__(
        self, parameters: Iterable[Parameter], local: np.ndarray | None = None, total: np.ndarray | None = None
    ) -> None:
        self.parameters = list(parameters)
        self.dtype = self.parameters[0].data.dtype
        self.slices, self.size = laid_out([parameter.size for parameter in self.parameters], self.dtype.itemsize)
        self.local = aligned_zeros(self.size, self.dtype) if local is None else local
        self.views = views(self.local, self.slices, self.parameters)
        self.total, self.total_views = None, []
        if total is not None:
            self.total = total.view()
            self.total.flags.writeable = False
            self.total_views = views(self.total, self.slices, self.parameters)
        self._place = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        for view, parameter in zip(self.views, self.parameters):
            grad = parameter.grad
            if grad is not None and grad.flags.writeable and grad.shape == view.shape:
                view[...] = grad
                parameter.grad = view
            parameter.grad_buffer = view
            parameter.flat_gradients = self

    def receives(self, parameter: Parameter) -> bool:
        """Whether backward writes the parameter's gradient here."""
        place = self._place.get(id(parameter))
        return place is not None and parameter.grad_buffer is self.views[place] and parameter.data.dtype == self.dtype

    def start(self, parameter: Parameter) -> int:
        """The index at which the parameter's gradient begins."""
        return self.slices[self._place[id(parameter)]].start

    @property
    def are_in_place(self) -> bool:
        """Whether every parameter has its gradient in `local`."""
        return all(map(is_, [parameter.grad for parameter in self.parameters], self.views))

    def gather(self) -> list[bool]:
        """Copies every gradient to its slot in `local`, zeros if there is none; returns which parameters have one."""
        grads = [parameter.grad for parameter in self.parameters]
        for view, grad in zip(self.views, grads):
            if grad is None:
                view[...] = 0
            elif grad is not view:
                view[...] = grad
        return [grad is not None for grad in grads]

    def leave(self) -> None:
        """Makes backward write nothing here any more; gradients stored here are copied (read-only if they are sums)."""
        sums = self.total_views or self.views
        for parameter, view, total in zip(self.parameters, self.views, sums):
            if parameter.grad is view:
                parameter.grad = view.copy()
            elif parameter.grad is total:
                parameter.grad = total.copy()
                parameter.grad.flags.writeable = False
            if parameter.grad_buffer is view:
                parameter.grad_buffer = parameter.flat_gradients = None


class Piece(NamedTuple):
    """Neighbours in a stretch that can be updated together."""

    places: slice  # which of the stretch's parameters
    where: slice  # in the stretch's arrays
    gradient: np.ndarray  # (n,), contiguous, in the dtype of the weights
    updates: int  # that each of them has had before


class Stretch:
    """Parameters that are neighbours in three flat arrays: weights, gradients, and an optimizer's state.

    `where` is its slice of the state, `weights` (n,) that of the flat weights. `counts` has the number of updates that
    each parameter has had.
    """

    def __init__(self, parameters: Sequence[Parameter], slices: Sequence[slice], counts: list[int]) -> None:
        self.parameters = list(parameters)
        self.counts = counts
        self.where = slice(slices[0].start, slices[-1].stop)
        self.offsets = [slice(own.start - self.where.start, own.stop - self.where.start) for own in slices]
        size = self.where.stop - self.where.start
        flat, gradients = parameters[0].flat, parameters[0].flat_gradients
        begin, at = flat.start(parameters[0]), gradients.start(parameters[0])
        self.weights: np.ndarray = flat.values[begin : begin + size]
        self._data = [parameter.data for parameter in parameters]
        self._buffers = [parameter.grad_buffer for parameter in parameters]
        self._gradients = gradients
        # (the gradients one by one, all of them in one array), where they may be
        self._homes = [(self._buffers, gradients.local[at : at + size])]
        if gradients.total is not None:
            places = [gradients._place[id(parameter)] for parameter in parameters]
            totals = [gradients.total_views[place] for place in places]
            self._homes.append((totals, gradients.total[at : at + size]))

    def gradients(self) -> list[Piece] | None:
        """The runs of neighbours that have a gradient; None if weights or gradients are no longer where they were.

        Gradients that live elsewhere come one by one. ValueError for one of another shape than its parameter's.
        """
        parameters, counts = self.parameters, self.counts
        if not all(map(is_, [parameter.data for parameter in parameters], self._data)):
            return None
        grads = [parameter.grad for parameter in parameters]
        if counts.count(counts[0]) == len(counts):
            for one_by_one, flat in self._homes:
                if all(map(is_, grads, one_by_one)):
                    return [Piece(slice(0, len(grads)), slice(0, len(flat)), flat, counts[0])]
        if not all(map(is_, [parameter.grad_buffer for parameter in parameters], self._buffers)):
            return None
        homes = [self._home(place, grad) for place, grad in enumerate(grads)]
        found: list[Piece] = []
        first = 0
        while first < len(grads):
            grad, home, last = grads[first], homes[first], first + 1
            if home is not None:
                while last < len(grads) and homes[last] == home and counts[last] == counts[first]:
                    last += 1
            where = slice(self.offsets[first].start, self.offsets[last - 1].stop)
            if home is not None:
                found.append(Piece(slice(first, last), where, self._homes[home][1][where], counts[first]))
            elif grad is not None:
                grad = np.asarray(grad, self.weights.dtype)
                if grad.shape != (shape := self.parameters[first].shape):
                    name = self.parameters[first].name
                    raise ValueError(f"the gradient of {name} has shape {grad.shape}, expected {shape}")
                found.append(Piece(slice(first, last), where, grad.reshape(-1), counts[first]))
            first = last
        return found

    def count(self, piece: Piece) -> None:
        """Enters one more update of these parameters."""
        self.counts[piece.places] = [piece.updates + 1] * (piece.places.stop - piece.places.start)

    def _home(self, place: int, grad: np.ndarray | None) -> int | None:
        """In which of `_homes` the gradient is."""
        for number, (one_by_one, _) in enumerate(self._homes):
            if grad is not None and grad is one_by_one[place]:
                return number
        return None


def stretches(parameters: Sequence[Parameter], slices: Sequence[slice], counts: Sequence[int]) -> list[Stretch]:
    """The longest runs of neighbours among parameters of one dtype, whose state lies in these slices.

    Makes flat arrays for the weights and the gradients of those that are in none.
    """
    flatten(parameters)
    homeless = [p for p in parameters if p.flat_gradients is None or not p.flat_gradients.receives(p)]
    if homeless:
        FlatGradients(homeless)
    found: list[Stretch] = []
    first = 0
    for last in range(1, len(parameters) + 1):
        if last < len(parameters):
            before, own = parameters[last - 1], parameters[last]
            step = slices[last].start - slices[last - 1].start
            near = own.flat is before.flat and own.flat.start(own) - before.flat.start(before) == step
            homes = own.flat_gradients, before.flat_gradients
            if near and homes[0] is homes[1] and homes[0].start(own) - homes[0].start(before) == step:
                continue
        found.append(Stretch(parameters[first:last], slices[first:last], list(counts[first:last])))
        first = last
    return found


def flatten(parameters: Iterable[Parameter]) -> list[FlatParameters]:
    """The flat arrays that hold these parameters: existing ones, or new ones for all parameters of a dtype."""
    by_dtype: dict[np.dtype, list[Parameter]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.data.dtype, []).append(parameter)
    found: list[FlatParameters] = []
    for members in by_dtype.values():
        if not all(member.flat is not None and member.flat.holds(member) for member in members):
            FlatParameters(members)
        for member in members:
            if member.flat not in found:
                found.append(member.flat)
    return found


def laid_out(sizes: Iterable[int], itemsize: int) -> tuple[list[slice], int]:
    """(where arrays of these sizes lie end to end, values in all with the gaps): each begins on a cache line."""
    step = _ALIGNMENT // itemsize
    found: list[slice] = []
    end = 0
    for size in sizes:
        found.append(slice(end, end + size))
        end += -(-size // step) * step
    return found, end


def views(flat: np.ndarray, slices: Sequence[slice], parameters: Sequence[Parameter]) -> list[np.ndarray]:
    """A flat array as one array per parameter, in the parameters' shapes, without a copy."""
    return [flat[where].reshape(parameter.shape) for where, parameter in zip(slices, parameters)]


def aligned_zeros(size: int, dtype: np.dtype) -> np.ndarray:
    """Zeros (size,) that begin on a cache line."""
    raw = np.zeros(size * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


def in_blocks(update: Callable[..., None], arrays: tuple[np.ndarray, ...], block: int = BLOCK) -> None:
    """Calls update(*pieces) on pieces of equally long flat arrays that stay in the cache from one pass to the next."""
    for start in range(0, len(arrays[0]), block):
        update(*[array[start : start + block] for array in arrays])

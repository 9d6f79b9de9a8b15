"""Parameters laid end to end in flat arrays: one update, one all-reduce for all of them, without copies.

A network's weights become views of one flat array, and backward writes their gradients into views of another. An
optimizer then updates everything with a handful of NumPy calls, and data parallelism sums one array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from parallel_dl.nn.module import Parameter

_ALIGNMENT = 64  # bytes, a cache line: where each parameter begins
BLOCK = 65536  # values that an update passes over at a time: they stay in the cache, and calls stay few


class FlatParameters:
    """Parameters of one dtype, end to end (each begins on a cache line; the gaps are zero).

    `values` (size,) holds the weights, `gradients` (size,) is where backward writes. `reduced` is None or a read-only
    array (size,) with the sum of all ranks' gradients. `slices` says where each parameter lies.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = list(parameters)
        self.dtype = self.parameters[0].data.dtype
        self.slices, self.size = laid_out([parameter.size for parameter in self.parameters], self.dtype.itemsize)
        self.values = aligned_zeros(self.size, self.dtype)
        for parameter, view in zip(self.parameters, self.views(self.values)):
            view[...] = parameter.data
            parameter.data = view
            parameter.flat = self
        self.reduced: np.ndarray | None = None
        self.reduced_views: list[np.ndarray] = []
        self.place_gradients(aligned_zeros(self.size, self.dtype))

    def views(self, flat: np.ndarray) -> list[np.ndarray]:
        """A flat array of our layout as one array per parameter, in the parameters' shapes, without a copy."""
        return [flat[where].reshape(parameter.shape) for where, parameter in zip(self.slices, self.parameters)]

    def place_gradients(self, gradients: np.ndarray, reduced: np.ndarray | None = None) -> None:
        """Lets the gradients live in these arrays (size,) from now on; those there are are forgotten."""
        self.gradients = gradients
        self.reduced = reduced
        self.reduced_views = [] if reduced is None else self.views(reduced)
        for parameter, view in zip(self.parameters, self.views(gradients)):
            parameter.grad = None
            parameter.grad_buffer = view

    def gather_gradients(self) -> list[bool]:
        """Brings every gradient into `gradients`, zeros where there is none; returns for which there is one."""
        present = []
        for parameter in self.parameters:
            grad, buffer = parameter.grad, parameter.grad_buffer
            assert buffer is not None
            if grad is None:
                buffer[...] = 0
            elif grad is not buffer:
                buffer[...] = grad
                parameter.grad = buffer
            present.append(grad is not None)
        return present

    def stretches(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(where, gradient) for each longest run of parameters that have a gradient."""
        reduced = self.reduced is not None and all(
            parameter.grad is None or parameter.grad is view
            for parameter, view in zip(self.parameters, self.reduced_views)
        )
        if reduced:
            present = [parameter.grad is not None for parameter in self.parameters]
        else:
            present = self.gather_gradients()
        source = self.reduced if reduced and self.reduced is not None else self.gradients
        begins = [where.start for where in self.slices] + [self.size]
        first = 0
        while first < len(present):
            last = first
            while last < len(present) and present[last]:
                last += 1
            if last > first:
                where = slice(begins[first], begins[last])
                yield where, source[where]
            first = last + 1


def laid_out(sizes: Iterable[int], itemsize: int) -> tuple[list[slice], int]:
    """(where arrays of these sizes lie end to end, values in all with the gaps): each begins on a cache line."""
    step = _ALIGNMENT // itemsize
    found: list[slice] = []
    end = 0
    for size in sizes:
        found.append(slice(end, end + size))
        end += -(-size // step) * step
    return found, end


def aligned_zeros(size: int, dtype: np.dtype) -> np.ndarray:
    """Zeros (size,) that begin on a cache line."""
    raw = np.zeros(size * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


def flatten(parameters: Iterable[Parameter]) -> list[FlatParameters]:
    """The flat arrays that hold these parameters: those they are in already, or new ones, one per dtype."""
    groups: list[FlatParameters] = []
    loose: dict[np.dtype, list[Parameter]] = {}
    for parameter in parameters:
        if parameter.flat is None:
            loose.setdefault(parameter.data.dtype, []).append(parameter)
        elif parameter.flat not in groups:
            groups.append(parameter.flat)
    return groups + [FlatParameters(members) for members in loose.values()]


def in_blocks(update: Callable[..., None], arrays: tuple[np.ndarray, ...], block: int = BLOCK) -> None:
    """Calls update(*pieces) on pieces of equally long flat arrays that stay in the cache from one pass to the next."""
    for start in range(0, len(arrays[0]), block):
        update(*[array[start : start + block] for array in arrays])

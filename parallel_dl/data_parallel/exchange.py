"""The gradients of parameters of one dtype in one array, and the array with their sum over the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parallel_dl.mpi import Communicator, SharedWindow
from parallel_dl.nn import FlatGradients, Parameter
from parallel_dl.nn.flat import laid_out

# The first flag of an exchange is 1 or 0, plus this number if its rank has news: sums stay exact in float32.
_NEWS = 4096.0


class Exchange:
    """`local`, one rank's summand, and `total`, the sum: the gradients, followed by one flag for each.

    A flag says whether this rank has the gradient; the sum of the flags, how many ranks do. `total` belongs to a
    shared-memory window, or is a separate array (`apart`), or else is `local`, which is then summed in place.
    """

    def __init__(
        self, parameters: Sequence[Parameter], window: SharedWindow | None = None, apart: bool = False
    ) -> None:
        self.parameters = list(parameters)
        size, count, dtype = *lengths(parameters), parameters[0].data.dtype
        self.window = window
        if window is not None:
            self.local, self.total = window.local, window.total
        else:
            self.local = np.zeros(count, dtype)
            self.total = np.zeros(count, dtype) if apart else self.local
        self.gradients = FlatGradients(parameters, self.local[:size], self.total[:size])
        self._flags, self._total_flags = self.local[size:], self.total[size:]

    def gather(self, news: bool = False) -> None:
        """Collects this rank's gradients and flags in `local`; they also tell all ranks whether there is `news`."""
        if self.gradients.are_in_place:
            self._flags.fill(1)
        else:
            self._flags[:] = self.gradients.gather()
        if news:
            self._flags[0] += _NEWS

    def all_reduce(self, comm: Communicator) -> None:
        """Makes `total` the sum over the ranks."""
        if self.window is not None:
            self.window.all_reduce()
            return
        if self.total is not self.local:
            self.total[...] = self.local
        comm.all_reduce(self.total, out=self.total)

    @property
    def flags(self) -> np.ndarray:
        """The flags in `total`, to be summed together with it."""
        return self._total_flags

    def bring_flags(self) -> None:
        """Copies this rank's flags into `total`."""
        self._total_flags[...] = self._flags

    @property
    def has_news(self) -> bool:
        """After the sum: whether any rank has news."""
        return self._total_flags.item(0) >= _NEWS

    def give(self) -> None:
        """Sets every parameter's gradient to the sum, read-only; None if no rank has one."""
        present = self._total_flags.tolist()
        present[0] %= _NEWS
        for parameter, view, ranks in zip(self.parameters, self.gradients.total_views, present):
            parameter.grad = view if ranks else None

    def free(self) -> None:
        """Frees the memory (collective)."""
        self.gradients.leave()
        if self.window is not None:
            self.window.free()


def lengths(parameters: Sequence[Parameter]) -> tuple[int, int]:
    """(values of the gradients laid out, values with the flags) of parameters of one dtype."""
    _, size = laid_out([parameter.size for parameter in parameters], parameters[0].data.dtype.itemsize)
    return size, size + len(parameters)

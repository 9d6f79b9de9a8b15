"""The state of an optimizer: flat arrays, laid out as the weights are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from parallel_dl.nn import Parameter
from parallel_dl.nn.flat import Stretch, aligned_zeros, laid_out, stretches, views
from parallel_dl.optim.options import Options


class Part:
    """The parameters of a group that have one dtype, and their state: flat arrays (size,), by name."""

    def __init__(self, group: Options, parameters: Sequence[Parameter], state_names: Iterable[str]) -> None:
        self.group = group
        self.parameters = list(parameters)
        self.dtype = parameters[0].data.dtype
        self.slices, self.size = laid_out([parameter.size for parameter in parameters], self.dtype.itemsize)
        self.state: dict[str, np.ndarray] = {}
        self.require_state(state_names)
        self.counts = [0] * len(self.parameters)  # updates of each; the stretches keep them once there are any
        self.stretches: list[Stretch] = []

    def require_state(self, names: Iterable[str]) -> None:
        """Adds missing state of these names, as zeros: an option may have been changed."""
        for name in names:
            if name not in self.state:
                self.state[name] = aligned_zeros(self.size, self.dtype)

    def arrange(self) -> None:
        """Finds out again where weights and gradients are."""
        self.stretches = stretches(self.parameters, self.slices, self.updates())

    def updates(self) -> list[int]:
        """The number of updates of each parameter."""
        return [n for stretch in self.stretches for n in stretch.counts] if self.stretches else self.counts

    def set_updates(self, counts: list[int]) -> None:
        self.counts, self.stretches = counts, []
        self.arrange()

    def views(self) -> list[dict[str, np.ndarray]]:
        """The state of each parameter, by name, without a copy."""
        by_name = {name: views(flat, self.slices, self.parameters) for name, flat in self.state.items()}
        return [{name: arrays[place] for name, arrays in by_name.items()} for place in range(len(self.parameters))]

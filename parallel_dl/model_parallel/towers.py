"""Towers: parallel branches of one network, executed at the same time, each by one rank."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.model_parallel.axis import ModelAxis, name_of
from parallel_dl.splits.placement import Shape
from parallel_dl.splits.plan import Ending


class TowerBranches(nn.Branches):
    """Branches of which this rank runs those numbered `own`, in order.

    Its result is the summand, or the slice along axis 1, that they make of the whole one of `whole_shape`; a rank
    without a branch makes zeros, or an empty slice.
    """

    own: tuple[int, ...]
    whole_shape: Shape

    def forward(self, x: Any) -> Any:
        names = list(self._modules)
        outputs = [self.call(names[number], x) for number in self.own]
        if not outputs:
            channels = 0 if self.join == "concatenate" else self.whole_shape[0]
            dtype = np.result_type(x.dtype, self.path("")[1].dtype)
            return Tensor(np.zeros((x.shape[0], channels, *self.whole_shape[1:]), dtype))
        if self.join == "concatenate":
            return ops.concatenate(*outputs, axis=1)
        total = functools.reduce(ops.add, outputs)
        return total if isinstance(total, Tensor) else Tensor(total)  # an Identity alone, on the network's input

    def describe(self) -> str:
        return f"{self.join}, of which this rank runs {', '.join(map(str, self.own)) or 'none'}"


class JoinedBranches(nn.Branches):
    """Branches that all ranks run together, and that end in different placements: they are made whole, and joined."""

    endings: tuple[Ending, ...]
    axis: ModelAxis

    def forward(self, x: Any) -> Any:
        outputs = [
            self.axis.make(ending.moves, self.call(name, x), name_of(self))
            for name, ending in zip(self._modules, self.endings)
        ]
        self.joined_shape(x, [output.shape for output in outputs])
        if self.join == "concatenate":
            return ops.concatenate(*outputs, axis=1)
        return functools.reduce(ops.add, outputs)

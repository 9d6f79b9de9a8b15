"""Normalisation and dropout where an activation is split: the same numbers as on the whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.mpi import Communicator, collectives
from parallel_dl.nn.streams import Places
from parallel_dl.splits.placement import Shape


class SplitLocalResponseNorm(nn.LocalResponseNorm):
    """LocalResponseNorm of the channels `own`; x is the channels `seen`, those around them that their windows reach.

    `width` is the number of channels of a tower, beyond which no window reaches.
    """

    own: slice
    seen: slice
    width: int

    def forward(self, x: Any) -> Tensor:
        outputs = []
        at = self.own.start
        while at < self.own.stop:  # tower by tower
            tower = at // self.width
            stop = min(self.own.stop, (tower + 1) * self.width)
            first = max(self.seen.start, tower * self.width)
            last = min(self.seen.stop, (tower + 1) * self.width)
            inside = self._between(x, first - self.seen.start, last - self.seen.start)
            y = ops.local_response_norm(inside, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k)
            outputs.append(self._between(y, at - first, stop - first))
            at = stop
        if not outputs:
            return Tensor(np.empty((x.shape[0], 0, *x.shape[2:]), x.dtype))
        return outputs[0] if len(outputs) == 1 else ops.concatenate(*outputs, axis=1)

    @staticmethod
    def _between(x: Any, first: int, last: int) -> Any:
        whole = first == 0 and last == x.shape[1]
        return x if whole else ops.index(x, index=(slice(None), slice(first, last)))


class TiledBatchNorm(nn.BatchNorm):
    """BatchNorm whose statistics are summed over the tiles of the image, beside what data parallelism sums."""

    comm: Communicator

    def forward(self, x: Any) -> Tensor:
        self.require(x)
        # each rank's gradients are summands, those of its tile
        weight = None if self.weight is None else collectives.replicate(self.weight, self.comm)
        bias = None if self.bias is None else collectives.replicate(self.bias, self.comm)
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return ops.batch_norm(x, weight, bias, eps=self.eps, mean=mean, variance=variance)

        def total(sums: np.ndarray) -> np.ndarray:
            if self.comm.is_freed:
                raise RuntimeError("backward of a batch norm whose communicator was freed: run it before free()")
            of_tiles = self.comm.all_reduce(sums)
            return of_tiles if self.total is None else self.total(of_tiles)

        def observe(mean: np.ndarray, variance: np.ndarray, count: int) -> None:
            self._observe(x, mean, variance, count)

        return ops.synchronized_batch_norm(x, weight, bias, total=total, eps=self.eps, observe=observe)


class SplitDropout(nn.Dropout):
    """Dropout of this rank's part of each sample: `index` in the whole sample of `whole_shape`, whose mask it takes."""

    whole_shape: Shape
    index: tuple[slice, ...]

    def keep(self, seed: int, step: int, name: str, shape: tuple[int, ...], first_sample: Places) -> np.ndarray:
        whole = super().keep(seed, step, name, (shape[0], *self.whole_shape), first_sample)
        return whole[(slice(None), *self.index)]

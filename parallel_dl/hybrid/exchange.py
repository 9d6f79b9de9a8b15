"""The exchange of sub-batches between the ranks: posted early, and waited for when the data is needed.

Both go directly from rank to rank, without blocking. Activations of a sub-batch go from each rank that has some to all
others: an all-gather in scheme a, a broadcast in b, an all-gather of chunks in c. The gradients come back as a
reduction: split layers leave a summand on each rank, and the owner of a sample adds them up, in the order of the ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from parallel_dl.mpi import Communicator, Pending
from parallel_dl.schedule import SubBatch

ACTIVATIONS, GRADIENTS = 1, 2  # tags


class Exchange:
    """Exchanges sub-batches of activations (samples, values) between the ranks of `comm`.

    All ranks start the exchanges in the same order. A ledger lists activations under "activations", forward, and their
    gradients under the same name, backward.
    """

    def __init__(self, comm: Communicator, values: int) -> None:
        self.comm, self.values = comm, values
        self._forward = comm.labelled("activations", "forward")
        self._backward = comm.labelled("activations", "backward")

    def start_gather(self, sub_batch: SubBatch, share: np.ndarray) -> Posted:
        """Sends this rank's samples of the sub-batch to all others; `share` (samples, values) is all of its share.

        What is waited for are all samples of the sub-batch, in the order of the ranks.
        """
        whole = np.empty((sub_batch.size, self.values), share.dtype)
        whole[sub_batch.rows(self.comm.rank)] = share[sub_batch.own[self.comm.rank]]
        pending = [
            self._forward.ireceive(whole[sub_batch.rows(rank)], rank, ACTIVATIONS)
            for rank in self._others_with(sub_batch)
        ]
        mine = whole[sub_batch.rows(self.comm.rank)]
        if len(mine):
            pending += [self._forward.isend(mine, rank, ACTIVATIONS) for rank in self._others]
        return Posted([whole], pending)

    def start_reduction(self, sub_batch: SubBatch, gradient: np.ndarray) -> Posted:
        """Sends each owner this rank's summands of its samples' gradients; `gradient` is (samples, values).

        What is waited for are the sums for this rank's samples of the sub-batch.
        """
        gradient = np.ascontiguousarray(gradient)
        own = gradient[sub_batch.rows(self.comm.rank)]
        summands = {self.comm.rank: own}
        pending = []
        for rank in self._others if len(own) else ():
            summands[rank] = np.empty_like(own)
            pending.append(self._backward.ireceive(summands[rank], rank, GRADIENTS))
        pending += [
            self._backward.isend(gradient[sub_batch.rows(rank)], rank, GRADIENTS)
            for rank in self._others_with(sub_batch)
        ]
        return Posted([summands[rank] for rank in sorted(summands)], pending)

    @property
    def _others(self) -> list[int]:
        """From the next rank on: not all ranks send to the same one first."""
        return [(self.comm.rank + step) % self.comm.size for step in range(1, self.comm.size)]

    def _others_with(self, sub_batch: SubBatch) -> list[int]:
        sizes = sub_batch.sizes
        return [rank for rank in self._others if sizes[rank]]


class Posted(NamedTuple):
    """Messages in transit, and the arrays (samples, values) that it fills: one, or the owner's summands by rank."""

    arrays: list[np.ndarray]
    pending: list[Pending]

    def wait(self) -> np.ndarray:
        """The sum of the arrays, once they are complete: the activations of the sub-batch, or their gradients."""
        for one in self.pending:
            one.wait()
        total = self.arrays[0]
        if len(self.arrays) > 1:
            total = total + self.arrays[1]
        for summand in self.arrays[2:]:
            total += summand
        return total

"""The exchange of parts between the ranks: posted, and waited for when what is exchanged is needed.

Both go directly from rank to rank, without blocking. Activations of a part go from each rank that has some to all
others: an all-gather in scheme a, a broadcast in b, an all-gather of pieces in c. The gradients come back as a
reduction: split layers leave a summand on each rank, and the owner of a sample adds them up, in the order of the ranks.
"""

from __future__ import annotations

import numpy as np

from parallel_dl.hybrid.parts import Part
from parallel_dl.mpi import Communicator, Pending

ACTIVATIONS, GRADIENTS = 1, 2  # tags


class Exchange:
    """Exchanges parts of activations (samples, values) between the ranks of `comm`.

    All ranks start the exchanges in the same order. A ledger enters those of the activations under "activations",
    forward, and their gradients' under the same name, backward.
    """

    def __init__(self, comm: Communicator, values: int) -> None:
        self.comm, self.values = comm, values
        self._forward = comm.labelled("activations", "forward")
        self._backward = comm.labelled("activations", "backward")

    def start_gather(self, part: Part, share: np.ndarray) -> Gathering:
        """Sends this rank's samples of the part to all others; `share` (samples, values) is all of its share."""
        whole = np.empty((part.size, self.values), share.dtype)
        whole[part.rows(self.comm.rank)] = share[part.own[self.comm.rank]]
        pending = [
            self._forward.ireceive(whole[part.rows(rank)], rank, ACTIVATIONS) for rank in self._others_with(part)
        ]
        mine = whole[part.rows(self.comm.rank)]
        if len(mine):
            pending += [self._forward.isend(mine, rank, ACTIVATIONS) for rank in self._others]
        return Gathering(whole, pending)

    def start_reduction(self, part: Part, gradient: np.ndarray) -> Reduction:
        """Sends each owner this rank's summands of its samples' gradients; `gradient` is (samples of part, values)."""
        gradient = np.ascontiguousarray(gradient)
        own = gradient[part.rows(self.comm.rank)]
        summands = {self.comm.rank: own}
        pending = []
        for rank in self._others if len(own) else ():
            summands[rank] = np.empty_like(own)
            pending.append(self._backward.ireceive(summands[rank], rank, GRADIENTS))
        pending += [
            self._backward.isend(gradient[part.rows(rank)], rank, GRADIENTS) for rank in self._others_with(part)
        ]
        return Reduction([summands[rank] for rank in sorted(summands)], pending)

    @property
    def _others(self) -> list[int]:
        """From the next rank on: not all ranks send to the same one first."""
        return [(self.comm.rank + step) % self.comm.size for step in range(1, self.comm.size)]

    def _others_with(self, part: Part) -> list[int]:
        sizes = part.sizes
        return [rank for rank in self._others if sizes[rank]]


class Gathering:
    """Activations of a part that are on their way."""

    def __init__(self, whole: np.ndarray, pending: list[Pending]) -> None:
        self._whole, self._pending = whole, pending

    def wait(self) -> np.ndarray:
        """All samples of the part (samples, values), in the order of the ranks."""
        for one in self._pending:
            one.wait()
        return self._whole


class Reduction:
    """Summands of gradients that are on their way to the owners."""

    def __init__(self, summands: list[np.ndarray], pending: list[Pending]) -> None:
        self._summands, self._pending = summands, pending

    def wait(self) -> np.ndarray:
        """The sums for this rank's samples of the part (samples, values)."""
        for one in self._pending:
            one.wait()
        total = self._summands[0]
        if len(self._summands) > 1:
            total = total + self._summands[1]
        for summand in self._summands[2:]:
            total += summand
        return total

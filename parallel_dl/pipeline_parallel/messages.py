"""Messages between stages: activations and gradients, sent and received without blocking.

Both sides know the shape and dtype of every message. The memory layout of the axes is announced once, with the first
message: sums then add up in the order of a serial run, to the same bits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parallel_dl.cost.stages import Shape
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator, Pending
from parallel_dl.schedule import Action

_AHEAD = 2  # receives that are posted before they are needed: more would hold the memory that 1F1B saves
_ORDERS = 1 << 12  # added to a tag for the message that tells the order of memory
_ONE_SAMPLE = 1 << 11  # the same, of microbatches of one sample, whose first axis says nothing


class Messages:
    """The messages of one rank of a pipeline; `rank_of` maps stages to ranks.

    Boundary b is before stage b, and `shape_at(b, n)` is the shape of what this rank has of n samples there.
    """

    def __init__(
        self, comm: Communicator, rank_of: Mapping[int, int], shape_at: Callable[[int, int], Shape], dtype: Any
    ) -> None:
        self.comm, self.rank_of, self.shape_at, self.dtype = comm, rank_of, shape_at, np.dtype(dtype)
        self._orders: dict[tuple[int, int], tuple[int, ...]] = {}  # (rank, tag) -> axes, outermost first
        self._labelled = {  # as the ledger enters what is sent
            (stage, kind): comm.labelled(f"stage {stage}", direction)
            for stage, rank in rank_of.items()
            if rank == comm.rank
            for kind, direction in (("SF", "forward"), ("SB", "backward"))
        }

    def begin(self, samples: Sequence[int]) -> None:
        """Starts a step whose microbatches have these numbers of samples here."""
        self.samples = samples
        self._sent: list[Pending] = []
        self._due: deque[Action] = deque()
        self._posted: dict[Action, Pending] = {}

    def expect(self, receives: Sequence[Action]) -> None:
        """Announces the receives to come, in order; the next two are posted ahead."""
        self._due = deque(receives)
        self._post()

    def _post(self) -> None:
        while self._due and len(self._posted) < _AHEAD:
            action = self._due.popleft()
            buffer = np.empty(math.prod(self._shape(action)), self.dtype)
            self._posted[action] = self.comm.ireceive(buffer, self._peer(action), _tag(action.partner))

    def receive(self, action: Action) -> np.ndarray:
        """Waits for the received array, (samples, ...)."""
        flat = self._posted.pop(action).wait()
        self._post()
        shape = self._shape(action)
        rank, tag = key = self._peer(action), _order_tag(_tag(action.partner), shape[0])
        if key not in self._orders:
            self._orders[key] = tuple(self.comm.receive(rank, (len(shape),), np.int64, tag).tolist())
        order = self._orders[key]
        return flat.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def send(self, action: Action, array: np.ndarray) -> None:
        """Starts to send (samples, ...) in the memory layout of the first such array."""
        self.require_fits(array, _boundary(action), self.samples[action.microbatch])
        comm = self._labelled[action.stage, action.kind]
        rank, tag = key = self._peer(action), _order_tag(_tag(action), len(array))
        if key not in self._orders:
            order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis] if array.shape[axis] > 1 else 0)
            self._sent.append(comm.isend(np.array(order, np.int64), rank, tag))
            self._orders[key] = tuple(order)
        self._sent.append(comm.isend(array.transpose(self._orders[key]), rank, _tag(action)))

    def require_fits(self, array: np.ndarray, boundary: int, samples: int) -> None:
        """Raises InputError for an activation, or gradient, of a shape or dtype that is not expected there."""
        if array.dtype != self.dtype:
            raise InputError(
                f"stage {boundary - 1} gives {array.dtype}, but the network is {self.dtype}: "
                f"convert the samples to {self.dtype}"
            )
        expected = self.shape_at(boundary, samples)
        if array.shape != expected:
            raise InputError(
                f"stage {boundary - 1} gives samples of shape {array.shape[1:]}, but stage {boundary} takes "
                f"{expected[1:]}: the samples are not of input_shape"
            )

    def finish(self) -> None:
        """Waits until everything has been sent."""
        for pending in self._sent:
            pending.wait()
        self._sent = []

    def _peer(self, action: Action) -> int:
        return self.rank_of[action.partner.stage]

    def _shape(self, action: Action) -> Shape:
        return self.shape_at(_boundary(action), self.samples[action.microbatch])


def _boundary(action: Action) -> int:
    """That the message passes: before its stage, or after it."""
    return action.stage + (action.kind in ("SF", "RB"))


def _tag(send: Action) -> int:
    """Messages of one boundary and direction come in order; others must not be taken for them."""
    return 2 * send.stage + (send.kind == "SB")


def _order_tag(tag: int, samples: int) -> int:
    """The tag of the message that announces the memory layout of this many samples."""
    return _ORDERS + tag + (_ONE_SAMPLE if samples < 2 else 0)

"""Checks that all ranks have the same weights and buffers, and make an all-reduce with the same settings."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator
from parallel_dl.mpi.transport import plain
from parallel_dl.nn import Parameter


def agreed_trainable(parameters: Sequence[Parameter], settings: tuple[Any, ...], comm: Communicator) -> list[Parameter]:
    """The parameters that are trainable on some rank, whose gradients are summed on all ranks.

    InputError if settings (method, overlap, bucket_bytes), shapes or dtypes differ between ranks.
    """
    shapes = [f"{parameter.data.dtype} {parameter.shape}" for parameter in parameters]
    told = comm.all_gather_object((settings, shapes, [parameter.requires_grad for parameter in parameters]))
    for rank, (others, other_shapes, _) in enumerate(told):
        for name, own, other in zip(("method", "overlap", "bucket_bytes"), told[0][0], others):
            if own != other:
                raise InputError(f"GradientAllReduce: {name} is {own!r} on rank 0 and {other!r} on rank {rank}")
        if other_shapes != told[0][1]:
            raise InputError(
                f"GradientAllReduce: the parameters of rank {rank} differ in shape or type from those of rank 0"
            )
    return [parameter for parameter, *flags in zip(parameters, *(flags for *_, flags in told)) if any(flags)]


def require_equal_replicas(weights: Iterable[np.ndarray], buffers: Iterable[np.ndarray], comm: Communicator) -> None:
    """Raises InputError on every rank unless weights and buffers are bitwise equal on all ranks."""
    digests = comm.all_gather_object((_digest(weights), _digest(buffers)))
    for what, of_kind in zip(("weights", "buffers"), zip(*digests)):
        different = [rank for rank, other in enumerate(of_kind) if other != of_kind[0]]
        if different:
            raise InputError(
                f"replicas differ: the {what} of rank {different[0]} are not those of rank 0; "
                "initialize the network with one seed on all ranks, and give the communicator of the data axis alone"
            )


EVERY = 10
"""updates between two looks at the replicas"""


def replicas_agree(parameters: Iterable[Parameter], comm: Communicator, every: int = EVERY) -> Callable[[], None]:
    """A function to call after each update, on all ranks of `comm`: compares the weights of all ranks now and then.

        agree = replicas_agree(model.parameters(), comm)
        ...
            optimizer.step()
            agree()

    Every `every` calls, at the first one too, it raises InputError on all ranks unless each parameter is bitwise equal
    on all of them, and names the first that is not. Only checksums are sent, and no ledger counts them. ValueError for
    an `every` below 1.

    A communicator in checked mode needs no such call: `GradientAllReduce.all_reduce` then compares the weights itself,
    every 10 updates.
    """
    if every < 1:
        raise ValueError(f"replicas_agree: every is {every}; expected a whole number, at least 1")
    return Replicas(list(parameters), comm, every).look


class Replicas:
    """Looks at parameters that all ranks of a communicator have, at the first and every `every`-th call after it.

    Without `at_once`, not at the first but the `every`-th.
    """

    def __init__(
        self, parameters: Sequence[Parameter], comm: Communicator, every: int = EVERY, at_once: bool = True
    ) -> None:
        self.parameters, self.comm, self.every = parameters, comm, every
        self._calls = 0
        self._looks_at = 1 if at_once else 0

    def look(self) -> None:
        """Compares the weights, or does nothing, until it is time again."""
        self._calls += 1
        if self.comm.size == 1 or (self._calls - self._looks_at) % self.every:
            return
        self.comm.announce("replicas_agree", len(self.parameters))
        sums = [zlib.crc32(np.ascontiguousarray(parameter.data).data) for parameter in self.parameters]
        told = plain(self.comm.mpi).allgather(sums)
        for place, parameter in enumerate(self.parameters):
            different = [rank for rank, other in enumerate(told) if other[place] != told[0][place]]
            if different:
                raise InputError(
                    f"replicas differ: {parameter.name or f'parameter {place}'} of rank {different[0]} is not that of "
                    f"rank 0 (noticed at update {self._calls}); does a rank leave out an update or the sum of the "
                    "gradients, or change its weights on its own?"
                )


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()

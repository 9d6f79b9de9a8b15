"""Checks that all ranks have the same weights and buffers, and make an all-reduce with the same settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator
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


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()

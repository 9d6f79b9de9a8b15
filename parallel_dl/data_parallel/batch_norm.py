"""Batch norm over all shares of a microbatch: statistics are summed over the ranks, as in a serial run.

In forward, the ranks sum the values and their count, then the squared deviations from the common mean; in backward, in
one exchange, the gradient and its product with the deviations, because the mean and the variance depend on every rank's
samples, and so does every rank's loss. The sums have the same bits on all ranks, and so do the running statistics. A
layer with `statistics="local"` is not touched: it normalises with the rank's own share, and its running statistics,
which then differ, are averaged over the ranks once per update.
"""

from __future__ import annotations

import numpy as np

from parallel_dl.mpi import Communicator
from parallel_dl.nn import BatchNorm, Module


class SumOverRanks:
    """The `total` of a batch norm layer: the sum over the ranks of `comm`, until `leave_batch_norm`.

    `before` is the layer's previous total, set by another `GradientAllReduce` with parameters of its network. A ledger
    lists the sums under `layer`, the layer's name in its network.
    """

    def __init__(self, comm: Communicator, before: object = None, layer: str = "") -> None:
        self.comm: Communicator | None = comm
        self._labelled = comm.labelled(layer)
        self.before = before if isinstance(before, SumOverRanks) else None

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """The sum of all ranks' arrays; RuntimeError once the communicator is freed."""
        if self.comm is None:
            raise RuntimeError(
                "backward of a batch norm whose communicator was freed: run backward before free(), "
                "and use no_grad() for a forward without backward"
            )
        return self._labelled.all_reduce(sums)


def batch_norm_layers(network: Module, statistics: str) -> dict[str, BatchNorm]:
    """Name -> batch norm layer with these statistics, "global" or "local", in order of registration.

    A layer used in several places appears once, under its first name.
    """
    layers: dict[int, tuple[str, BatchNorm]] = {}
    for name, module in network.named_modules():
        if isinstance(module, BatchNorm) and module.statistics == statistics:
            layers.setdefault(id(module), (name, module))
    return dict(layers.values())


def synchronize_batch_norm(network: Module, comm: Communicator) -> None:
    """Makes every batch norm of `network` that is not local compute its statistics over the ranks of `comm`.

    From then on, all ranks must call forward in training mode together, and backward if they recorded it, even with an
    empty share. On one rank, layers stay serial. `GradientAllReduce` calls this for the networks of its parameters.
    """
    for name, layer in batch_norm_layers(network, "global").items():
        layer.total = SumOverRanks(comm, layer.total, name) if comm.size > 1 else None


def leave_batch_norm(network: Module, comm: Communicator) -> None:
    """Undoes `synchronize_batch_norm`: the layers compute their statistics as before, or on this rank alone."""
    for layer in batch_norm_layers(network, "global").values():
        total = layer.total
        while isinstance(total, SumOverRanks):
            if total.comm is comm:
                total.comm = None
            total = total.before
        while isinstance(layer.total, SumOverRanks) and layer.total.comm is None:
            layer.total = layer.total.before


def average_running_statistics(layers: list[BatchNorm], comm: Communicator) -> None:
    """Replaces the layers' running statistics by their averages over the ranks, with the same bits on all ranks."""
    own = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
    buffers = list({id(buffer): buffer for buffer in own}.values())  # the places of one split layer share them
    if not buffers:
        return
    comm = comm.labelled("running statistics", "backward")
    means = comm.all_reduce(np.concatenate(buffers).astype(np.float64)) / comm.size
    for buffer, mean in zip(buffers, np.split(means, np.cumsum([buffer.size for buffer in buffers])[:-1])):
        buffer[...] = mean

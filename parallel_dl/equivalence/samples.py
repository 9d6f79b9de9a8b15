"""The gradient of each sample by itself: the finest summands that data parallelism could cut a gradient into.

Batch norm couples the samples, so a sample's summand is not the gradient of its loss alone: it is what a rank would
compute that has this one sample as its share. One pass over the whole microbatch records the sums that the ranks would
exchange; then each sample is passed on its own, and these sums are played back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from parallel_dl.datasets import Batch
from parallel_dl.nn import BatchNorm, Module
from parallel_dl.trainer import Trainer

Arrays = dict[str, np.ndarray]


def sums_of_magnitudes(trainer: Trainer, batch: Batch) -> tuple[np.ndarray, Arrays]:
    """Sum over the samples of |its loss|, and for each parameter of |its summand of the gradient|, by element.

    The network's state is as before; its gradients are gone.
    """
    network = trainer.network
    losses = np.zeros(1)
    sums = {name: np.zeros(parameter.shape) for name, parameter in network.named_parameters()}
    state = network.state_dict()
    network.train()

    def summand(x: np.ndarray, y: np.ndarray, first: int, size: int) -> float:
        network.zero_grad()
        network.at(trainer.updates, first)
        loss = trainer.loss(network(x), y, size)
        loss.backward()
        return loss.item()

    for part in batch.microbatches:
        with _totals(network) as play_back:
            if play_back is not None and len(part.x):
                summand(part.x, part.y, part.first, part.size)
            for sample in range(len(part.x)):
                if play_back is not None:
                    play_back()
                own = slice(sample, sample + 1)
                losses += abs(summand(part.x[own], part.y[own], part.first + sample, part.size))
                for name, parameter in network.named_parameters():
                    if parameter.grad is not None:
                        sums[name] += np.abs(parameter.grad)
    network.zero_grad()
    network.load_state_dict(state)
    return losses, sums


@contextmanager
def _totals(network: Module) -> Iterator[Callable[[], None] | None]:
    """Records all sums that batch norm layers ask for; after a call of what it yields they are given once more.

    Yields None for a network without batch norm: its samples do not know of each other.
    """
    layers = [module for _, module in network.named_modules() if isinstance(module, BatchNorm)]
    before = [layer.total for layer in layers]
    recorded: list[np.ndarray] = []
    position: Iterator[np.ndarray] | None = None

    def total(sums: np.ndarray) -> np.ndarray:
        if position is not None:
            return next(position)
        recorded.append(sums.copy())
        return sums

    def play_back() -> None:
        nonlocal position
        position = iter(recorded)

    for layer in layers:
        layer.total = total
    try:
        yield play_back if layers else None
    finally:
        for layer, kept in zip(layers, before):
            layer.total = kept

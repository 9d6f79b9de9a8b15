"""The gradient of each sample by itself: the finest summands that data parallelism could cut a gradient into.

Batch norm couples the samples, so a sample's summand is not the gradient of its loss alone: it is what a rank would
compute that has this one sample as its share. One pass over the whole microbatch records the sums that the ranks would
exchange; then each sample is passed on its own, and these sums are played back to it.

Batch norm's backward is itself a difference: the gradient with the statistics as constants, less what flows back
through them. In a microbatch of two samples the one takes away nearly all of the other. Both are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self

import numpy as np

from parallel_dl.datasets import Batch, Share
from parallel_dl.nn import BatchNorm, Module
from parallel_dl.trainer import Trainer

Arrays = dict[str, np.ndarray]


def sums_of_magnitudes(trainer: Trainer, batch: Batch) -> tuple[np.ndarray, Arrays]:
    """Sum over the samples of |its loss|, and for each parameter of |its summands of the gradient|, by element.

    The network's state is as before; its gradients are gone.
    """
    losses = np.zeros(1)
    sums = {name: np.zeros(parameter.shape) for name, parameter in trainer.network.named_parameters()}
    state = trainer.network.state_dict()
    for loss, whole, direct in each_sample(trainer, batch):
        losses += abs(loss)
        for name, gradient in whole.items():
            sums[name] += np.abs(direct[name]) + np.abs(gradient - direct[name])
    trainer.network.load_state_dict(state)
    return losses, sums


def each_sample(trainer: Trainer, batch: Batch) -> Iterator[tuple[float, Arrays, Arrays]]:
    """Of each sample in order: its summand of the loss, of each gradient, and of that with statistics as constants.

    In the end running statistics are as after a pass of the whole batch, and gradients are gone.
    """
    network = trainer.network
    network.train()
    for part in batch.microbatches:
        with _Totals(network) as totals:
            if totals.layers and len(part.x):
                _gradients(trainer, part, slice(0, len(part.x)))
            buffers = {name: array.copy() for name, array in network.named_buffers()}
            for sample in range(len(part.x)):
                own = slice(sample, sample + 1)
                totals.play_back()
                loss, whole = _gradients(trainer, part, own)
                direct = whole
                if totals.layers:
                    totals.play_back()
                    _, direct = _gradients(trainer, part, own, totals.give_zeros)
                yield loss, whole, direct
            for name, array in network.named_buffers():
                array[...] = buffers[name]
    network.zero_grad()


def _gradients(
    trainer: Trainer, part: Share, own: slice, before_backward: Callable[[], None] = lambda: None
) -> tuple[float, Arrays]:
    """The loss of these samples of a microbatch, and by name the gradients of the parameters that have one."""
    network = trainer.network
    network.zero_grad()
    network.at(trainer.updates, part.first + own.start)
    loss = trainer.loss(network(part.x[own]), part.y[own], part.size)
    before_backward()
    loss.backward()
    return loss.item(), {name: np.array(p.grad) for name, p in network.named_parameters() if p.grad is not None}


class _Totals:
    """In its context: records all sums that batch norm layers ask for, and gives them once more after `play_back()`.

    After `give_zeros()` it gives zeros instead: in backward, a gradient with the statistics as constants.
    """

    def __init__(self, network: Module) -> None:
        self.layers = [module for _, module in network.named_modules() if isinstance(module, BatchNorm)]
        self._zeros = False
        self._recorded: list[np.ndarray] = []
        self._next: Iterator[np.ndarray] | None = None

    def play_back(self) -> None:
        """From the first of them on."""
        self._next, self._zeros = iter(self._recorded), False

    def give_zeros(self) -> None:
        """Until the next `play_back()`."""
        self._zeros = True

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        if self._next is None:
            self._recorded.append(sums.copy())
            return sums
        total = next(self._next)
        return np.zeros_like(total) if self._zeros else total

    def __enter__(self) -> Self:
        self._before = [layer.total for layer in self.layers]
        for layer in self.layers:
            layer.total = self
        return self

    def __exit__(self, *_: object) -> None:
        for layer, before in zip(self.layers, self._before):
            layer.total = before

"""The gradient of each sample by itself: the finest summands that data parallelism could cut a gradient into.

Batch norm couples the samples, so a sample's summand is not the gradient of its loss alone: it is what a rank would
compute that has this one sample as its share. One pass over the whole microbatch records the sums that the ranks would
exchange; then each sample is passed on its own, and these sums are played back to it.

Two gradients are themselves differences of large numbers, whose terms are counted each:

- that of batch norm: with the statistics as constants, minus what flows back through them. In a microbatch of two
  samples these two nearly cancel;
- that of a loss at scores which fit: softmax minus one-hot, prediction minus target. The target's term is the loss's
  gradient at scores of zero.

A layer may keep more than weights and buffers, such as a random generator. So each sample goes through a copy of the
network as it was before the microbatch, and the network itself is called as often as in training, which is once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor
from parallel_dl.datasets import Batch, Share
from parallel_dl.equivalence.rounding.copies import copied
from parallel_dl.equivalence.rounding.passing import watched
from parallel_dl.nn import BatchNorm, Module
from parallel_dl.trainer import Trainer

Arrays = dict[str, np.ndarray]
Random = np.random.Generator | None
"""for a random order of sums over samples"""

FITS = 1e-2  # of the gradient at scores of zero: below it the target's term is counted, too


class NotBySamples(ValueError):
    """A network that takes whole batches only: what its errors are judged against cannot be measured."""


def sums_of_magnitudes(trainer: Trainer, batch: Batch) -> tuple[np.ndarray, Arrays]:
    """Sum over the samples of |its loss|, and for each trained parameter of |its summands of the gradient|, by element.

    The trainer's network and the process's random generators are left as they were.
    """
    losses = np.zeros(1)
    trained = ((name, one) for name, one in trainer.network.named_parameters() if one.requires_grad)
    sums = {name: np.zeros(parameter.shape) for name, parameter in trained}
    with _generators_kept():
        network, loss = copied(trainer.network, trainer.loss)
        for sample in _samples(network, loss, trainer.updates, batch):
            value, whole, direct = sample.measured()
            losses += abs(value)
            for name, gradient in whole.items():
                sums[name] += np.abs(direct[name]) + np.abs(gradient - direct[name])
            if sample.fits:
                losses += abs(sample.loss_at_zero)
                for name, gradient in sample.gradients_of_the_target().items():
                    sums[name] += 2 * np.abs(gradient)  # once as it is, once in what the scores add to it
    return losses, sums


def each_sample(trainer: Trainer, batch: Batch) -> Iterator[tuple[float, Arrays, Arrays]]:
    """Of each sample in order: its summand of the loss, of each gradient, and of that with statistics as constants.

    In the end the trainer's network is as after one pass of each microbatch, and gradients are gone.
    """
    for sample in _samples(trainer.network, trainer.loss, trainer.updates, batch):
        yield sample.measured()


def compute_gradients(trainer: Trainer, batch: Batch, random: Random) -> float:
    """Leaves the gradients of a batch in the parameters; returns its loss. Both as sums in a random order, if any."""
    if random is None:
        return trainer.compute_gradients(batch)
    summands = [(loss, gradients) for loss, gradients, _ in each_sample(trainer, batch)]
    order = random.permutation(len(summands))
    for name, parameter in trainer.network.named_parameters():
        give_gradient(parameter, one_after_another([summands[n][1][name] for n in order if name in summands[n][1]]))
    return float(sum(summands[n][0] for n in order))


def give_gradient(parameter: Tensor, gradient: np.ndarray | None) -> None:
    """Sets the gradient where backward would have left it: an optimizer may see how its arrays lie in memory."""
    buffer = parameter.grad_buffer
    if gradient is not None and buffer is not None and buffer.shape == gradient.shape:
        np.copyto(buffer, gradient)
        gradient = buffer
    parameter.grad = gradient


def one_after_another(arrays: list[np.ndarray]) -> np.ndarray | None:
    """Their sum; None of none."""
    total = None
    for array in arrays:
        total = array.copy() if total is None else total + array
    return total


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Puts the global generators of NumPy and Python back to where they were."""
    numpys, pythons = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)


def _samples(network: Module, loss: Any, step: int, batch: Batch) -> Iterator[_Sample]:
    """Each sample in order, after one pass of its microbatch through `network`."""
    network.train()
    for part in batch.microbatches:
        before = copied(network, loss)
        totals = _Totals()
        with totals.given_to(network):
            _gradients(network, loss, step, part, slice(0, len(part.x)))
        for number in range(len(part.x)):
            yield _Sample(before, totals, step, part, slice(number, number + 1))
    network.zero_grad()


class _Sample:
    """One sample of a microbatch, which each method passes through a new copy of the network as it was before."""

    def __init__(self, before: tuple[Module, Any], totals: _Totals, step: int, part: Share, own: slice) -> None:
        self.before, self.totals, self.step, self.part, self.own = before, totals, step, part, own
        self.has_statistics = totals.are_used
        self.fits = False
        """whether the gradient at its scores is small beside that at scores of zero; known after `gradients`"""
        self.loss_at_zero = 0.0
        self._at_zero = np.zeros(0)

    def measured(self) -> tuple[float, Arrays, Arrays]:
        """Its summand of the loss, of each gradient, and of that with statistics as constants; or NotBySamples."""
        try:
            value, whole = self.gradients()
            return value, whole, self.direct_gradients() if self.has_statistics else whole
        except Exception as error:
            raise NotBySamples(
                f"samples that are passed one by one, by which rounding is measured, end with {type(error).__name__}: "
                f"{error}; a layer of your own treats each sample by itself"
            ) from error

    def gradients(self) -> tuple[float, Arrays]:
        """Its summand of the loss, and of each gradient."""
        network, loss = copied(*self.before)
        scores, returned = None, None

        def seen(g: np.ndarray) -> None:
            nonlocal returned
            returned = np.array(g)

        def watching(y: Any, *arguments: Any) -> Any:
            nonlocal scores
            if isinstance(y, Tensor) and y.requires_grad:
                scores = y.data
                y = watched(y, seen=seen)
            return loss(y, *arguments)

        with self.totals.given_to(network):
            found = _gradients(network, watching, self.step, self.part, self.own)
        if scores is not None and returned is not None:
            self._compare_with_zero(loss, scores, np.asarray(returned))
        return found

    def direct_gradients(self) -> Arrays:
        """The same with the statistics of batch norm as constants."""
        network, loss = copied(*self.before)
        with self.totals.given_to(network):
            return _gradients(network, loss, self.step, self.part, self.own, self.totals.give_zeros)[1]

    def gradients_of_the_target(self) -> Arrays:
        """What the loss's gradient at scores of zero gives; statistics are constants."""
        network, _ = copied(*self.before)
        with self.totals.given_to(network):
            network.set_position(self.step, self.part.first + self.own.start)
            y = network(self.part.x[self.own])
            self.totals.give_zeros()
            y.backward(self._at_zero)
        return {name: np.array(p.grad) for name, p in network.named_parameters() if p.grad is not None}

    def _compare_with_zero(self, loss: Any, scores: np.ndarray, returned: np.ndarray) -> None:
        found = at_zero(loss, scores, self.part.y[self.own], self.part.size)
        if found is not None:
            self.loss_at_zero, self._at_zero = found
            self.fits = bool(np.abs(returned).max(initial=0.0) < FITS * np.abs(self._at_zero).max(initial=0.0))


def at_zero(loss: Any, scores: np.ndarray, targets: Any, total: Any) -> tuple[float, np.ndarray] | None:
    """The loss at scores of zero, and its gradient there: the target's term. None where they are not defined.

    Nothing else changes: a loss of the user's own may have a state, weights, or what a layer has kept for it.
    """
    own = isinstance(loss, FunctionType) and loss.__closure__ is None and loss.__module__.startswith("parallel_dl.")
    zeros = Tensor(np.zeros_like(scores), requires_grad=True)
    try:
        with np.errstate(all="ignore"), _generators_kept():
            value = (loss if own else copied(Module(), loss)[1])(zeros, targets, total)
            _cut_off(value, zeros)
            value.backward(since=zeros)
    except Exception:  # a loss of the user's own may refuse zeros
        return None
    if zeros.grad is None or not np.isfinite(zeros.grad).all() or not np.isfinite(value.item()):
        return None
    return value.item(), np.array(zeros.grad)


def _cut_off(value: Tensor, leaf: Tensor) -> None:
    """Cuts the history of `value` where it was made before `leaf`, and at other leaves: no gradient goes there."""
    waiting, seen = [value], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not node.edges:
            continue
        seen.add(id(node))
        node.edges = [
            (parent, pullback)
            for parent, pullback in node.edges
            if parent is leaf or (parent.edges and parent.number > leaf.number)
        ]
        waiting += [parent for parent, _ in node.edges]


def _gradients(
    network: Module,
    loss: Callable[..., Any],
    step: int,
    part: Share,
    own: slice,
    before_backward: Callable[[], None] = lambda: None,
) -> tuple[float, Arrays]:
    """The loss of these samples of a microbatch, and by name the gradients of the parameters that have one."""
    network.zero_grad()
    network.set_position(step, part.first + own.start)
    value = loss(network(part.x[own]), part.y[own], part.size)
    before_backward()
    value.backward()
    return value.item(), {name: np.array(p.grad) for name, p in network.named_parameters() if p.grad is not None}


class _Totals:
    """All sums that batch norm layers ask for: recorded the first time, and played back every other time.

    After `give_zeros()` it gives zeros instead: in backward, a gradient with the statistics as constants.
    """

    def __init__(self) -> None:
        self._zeros = False
        self._recorded: list[np.ndarray] = []
        self._next: Iterator[np.ndarray] | None = None

    @property
    def are_used(self) -> bool:
        """Whether there is a layer that asked for some."""
        return bool(self._recorded)

    @contextmanager
    def given_to(self, network: Module) -> Iterator[None]:
        """Inside, the layers of `network` ask here."""
        layers = [module for _, module in network.named_modules() if isinstance(module, BatchNorm)]
        before = [layer.total for layer in layers]
        for layer in layers:
            layer.total = self
        try:
            yield
        finally:
            for layer, total in zip(layers, before):
                layer.total = total
            self._next, self._zeros = iter(self._recorded), False

    def give_zeros(self) -> None:
        """Until the end of this pass."""
        self._zeros = True

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        if self._next is None:
            self._recorded.append(sums.copy())
            return sums
        total = next(self._next)
        return np.zeros_like(total) if self._zeros else total

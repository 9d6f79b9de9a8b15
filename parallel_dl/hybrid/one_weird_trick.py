"""A network in two halves on the same ranks: convolutions data parallel, fully connected layers model parallel.

(Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parallel_dl import nn, partition
from parallel_dl.autograd import Tensor
from parallel_dl.datasets import Share
from parallel_dl.errors import InputError, number_of
from parallel_dl.hybrid.exchange import Exchange, Reduction
from parallel_dl.hybrid.halves import halves_of
from parallel_dl.hybrid.parts import Part, parts_of, require_scheme
from parallel_dl.model_parallel import ModelParallel, parallelize
from parallel_dl.mpi import Communicator
from parallel_dl.nn.parameter import Parameter
from parallel_dl.optim import Optimizer


class OneWeirdTrick:
    """Turns `network`, a serial one for samples (*input_shape), in place, into what this rank of `comm` has of it.

    That is all of the layers before the first Flatten, and its pieces of those after it, which are divided as by
    `model_parallel.parallelize`. `scheme` is one of `parts.SCHEMES`. Raises InputError for a network without one of the
    halves or with batch norm in the second (`halves.halves_of`), for splits that cannot be, and for ranks that do not
    start alike. All methods are collective.

    `parallel` knows the whole network: it gathers whole weights, and sets them. The gradients of `feature_parameters`
    are summands, to be summed over `comm` (`data_parallel.GradientAllReduce`); those of `classifier_parameters` are
    those of the whole batch.
    """

    def __init__(
        self,
        network: nn.Module,
        comm: Communicator,
        input_shape: Sequence[int],
        scheme: str = "a",
        splits: Mapping[str, str] | None = None,
        loss: Callable[..., Any] = nn.cross_entropy,
    ) -> None:
        require_scheme(scheme)
        halves = halves_of(network, input_shape)
        self.network, self.scheme = network, scheme
        self.features, self.classifier, self.values = halves.features, halves.classifier, halves.values
        model = comm.split(0, comm.rank, name="model", axis="model")  # the same ranks
        assert model is not None
        self.comm = model
        try:
            divided = parallelize(self.classifier, model, (self.values,), splits, loss, partial_input=True)
        except InputError:
            model.free()
            raise
        for name, layer in self.classifier._modules.items():
            if network._modules[name] is not layer:
                network.replace(name, layer)
        self.parallel = ModelParallel(network, divided.plan, model)
        self.parallel.axis = divided.axis
        self.loss = divided.loss(loss)
        self.exchange = Exchange(model, self.values)
        self.optimizer: Optimizer | None = None

    @property
    def feature_parameters(self) -> list[Parameter]:
        """The weights before the Flatten, which every rank has in full."""
        return self.features.parameters()

    @property
    def classifier_parameters(self) -> list[Parameter]:
        """This rank's pieces of the weights after it."""
        return self.classifier.parameters()

    def update_after_parts(self, optimizer: Optimizer, update: Callable[[], int]) -> None:
        """Variable batch: lets `optimizer`, of `classifier_parameters`, make an update after each part.

        Its learning rate is that of the iteration, whose number is `update()`.
        """
        for group in optimizer.param_groups:
            if callable(policy := group["lr"]):
                group["lr"] = lambda _, policy=policy: policy(update())
        self.optimizer = optimizer

    # -- computing -------------------------------------------------------------------------------------------------
    def run(self, share: Share, update: int) -> float:
        """Forward and backward of a batch, of which this rank has `share`; `update` is the number of the iteration.

        Gradients are added to those there are. Returns the loss of the whole batch as `loss` gives it (a rank's summand
        of it where scores stay split and the loss takes no statistics).

        With variable batch, part j of n_j samples among n is divided by n_j for the update of the classifier, and what
        goes back to the features is multiplied by n_j / n: the gradient of the mean over the batch, each part passed
        through the classifier that it met.
        """
        shares = partition.shares(share.size, self.comm.size)
        if shares[self.comm.rank] != len(share.x):
            raise ValueError(
                f"rank {self.comm.rank} has {len(share.x)} of {number_of(share.size, 'sample')}, expected {shares}"
            )
        targets = self.comm.labelled("targets", "forward").all_gather(share.y, 0, shares)
        own = self.features_of(share.x, update, share.first)
        flat = np.ascontiguousarray(own.data.reshape(len(share.x), self.values))
        gradient = np.empty_like(flat)
        total = 0.0
        parts = [part for part in parts_of(self.scheme, shares) if part.size]
        following = self.exchange.start_gather(parts[0], flat) if parts else None
        returning: tuple[Part, float, Reduction] | None = None

        def take_back() -> None:
            if returning is not None:
                part, weight, reduction = returning
                gradient[part.own[self.comm.rank]] = reduction.wait() * weight

        for number, part in enumerate(parts, start=1):
            assert following is not None
            x = Tensor(following.wait(), requires_grad=True)
            following = self.exchange.start_gather(parts[number], flat) if number < len(parts) else None
            self.network.set_position(update, part.places)
            divisor = share.size if self.optimizer is None else part.size
            loss = self.loss(self.classifier(x), targets[part.places], divisor)
            take_back()  # of the part before: on its way while this one went forward
            loss.backward(since=x)
            weight = divisor / share.size
            total += loss.item() * weight
            returning = part, weight, self._start_return(part, x)
            if self.optimizer is not None:
                self.optimizer.step()
                self.classifier.zero_grad()
        take_back()
        if own.requires_grad:
            own.backward(gradient.reshape(own.shape))
        return total

    def features_of(self, x: np.ndarray, update: int | None = None, first: int = 0) -> Tensor:
        """The activations (n, ...) after the features of samples x, of which the first is at place `first`."""
        if update is not None:
            self.network.set_position(update, first)
        y = self.features(x)
        return y if isinstance(y, Tensor) else Tensor(y)

    def _start_return(self, part: Part, x: Tensor) -> Reduction:
        gradient = np.zeros_like(x.data) if x.grad is None else x.grad
        if self.parallel.plan.partial_input:
            return self.exchange.start_reduction(part, gradient)
        return Reduction([gradient[part.rows(self.comm.rank)]], [])  # whole on every rank

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        """The network's whole output (n, ...) for samples x (n, ...), the same on every rank, on all of them."""
        shares = partition.shares(len(x), self.comm.size)
        own = self.features_of(x[partition.share(len(x), self.comm.size, self.comm.rank)])
        flat = own.data.reshape(len(own), self.values)
        scores = self.classifier(Tensor(self.comm.labelled("activations", "forward").all_gather(flat, 0, shares)))
        return self.parallel.whole_output(scores.data)

    def free(self) -> None:
        """Gives back the communicators that were made (collective)."""
        self.parallel.free()
        self.comm.free()

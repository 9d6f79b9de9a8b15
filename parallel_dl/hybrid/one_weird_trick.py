"""A network cut at its Flatten, on the same ranks: convolutions data parallel, fully connected layers model parallel.

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
from parallel_dl.hybrid.exchange import Exchange, Posted
from parallel_dl.mesh import Replicated
from parallel_dl.model_parallel import ModelParallel, parallelize
from parallel_dl.mpi import Communicator
from parallel_dl.nn.parameter import Parameter
from parallel_dl.optim import Optimizer
from parallel_dl.schedule import ALL, SubBatch, require_scheme, sub_batches
from parallel_dl.splits.cut_at_flatten import cut_at_flatten
from parallel_dl.stage import NetworkStage, Passed


class OneWeirdTrick(NetworkStage):
    """Turns a serial `network` for samples (*input_shape), in place, into the part that this rank of `comm` has.

    That is all layers before the first Flatten, and its shards of those after it, which are divided as by
    `model_parallel.parallelize`. `scheme` is one of `schedule.SCHEMES`. Raises InputError for a network that
    `cut_at_flatten` refuses, for invalid splits, and for ranks that do not start alike. All methods are collective.

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
        cut = cut_at_flatten(network, input_shape)
        self.scheme = scheme
        self.features, self.classifier, self.values = cut.features, cut.classifier, cut.values
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
        super().__init__(network, divided.loss(loss))
        self.exchange = Exchange(model, self.values)
        self.optimizer: Optimizer | None = None
        # samples in the batch -> its sub-batches, and where their samples are in it
        self._cut: dict[int, list[tuple[SubBatch, np.ndarray]]] = {}

    @property
    def feature_parameters(self) -> list[Parameter]:
        """The weights before the Flatten, which every rank has in full."""
        return self.features.parameters()

    @property
    def classifier_parameters(self) -> list[Parameter]:
        """This rank's shards of the weights after it."""
        return self.classifier.parameters()

    def update_after_sub_batches(self, optimizer: Optimizer, update: Callable[[], int]) -> None:
        """Variable batch: makes `optimizer`, of `classifier_parameters`, update after each sub-batch.

        Its learning rate is that of the iteration, whose number is `update()`.
        """
        for group in optimizer.param_groups:
            if callable(policy := group["lr"]):
                group["lr"] = lambda _, policy=policy: policy(update())
        self.optimizer = optimizer

    # -- a batch ---------------------------------------------------------------------------------------------------
    def begin(self, microbatches: Sequence[Share], updates: Sequence[int]) -> None:
        """This rank's shares of the microbatches of the next step, and the number of updates before each of them."""
        super().begin(microbatches, updates)
        self._parts = [
            self._cut_up(share, share.size if len(microbatches) == 1 else share.of_all) for share in microbatches
        ]
        # of the microbatch that is under way, by sub-batch
        self._gathered: dict[int, Posted] = {}
        self._inputs: dict[int, Tensor] = {}
        self._gradients: dict[int, np.ndarray] = {}
        self._returning: dict[int, Posted] = {}

    def _cut_up(self, share: Share, samples: int) -> list[tuple[SubBatch, np.ndarray]]:
        """The sub-batches of a microbatch of this many samples, and where their samples are in it."""
        shares = partition.shares(samples, self.comm.size)
        if shares[self.comm.rank] != len(share.x):
            has = f"rank {self.comm.rank} has {len(share.x)} of {number_of(samples, 'sample')}"
            raise ValueError(f"{has}, expected {shares}")
        if samples not in self._cut:
            cut = sub_batches(self.scheme, shares)
            self._cut[samples] = [(part, np.array(part.indices, np.int64)) for part in cut]
        return self._cut[samples]

    # -- what the executor calls -----------------------------------------------------------------------------------
    def forward(self, stage: int, microbatch: int, sub_batch: int = ALL) -> None:
        """Stage 0: the features of this rank's share. Stage 1: the classifier and the loss of a sub-batch."""
        if stage == 0:
            self._forward_features(microbatch)
            return
        part, indices = self._parts[microbatch][sub_batch]
        x = self._inputs.pop(sub_batch)
        self.network.set_position(self.updates[microbatch], self._first + indices)
        loss = self.loss(self.classifier(x), self._targets[indices], self._divisor(microbatch, part))
        self._passed[sub_batch] = Passed(loss, x)

    def _forward_features(self, microbatch: int) -> None:
        share = self.enter(microbatch)
        shares = [sum(sizes) for sizes in zip(*(part.sizes for part, _ in self._parts[microbatch]))]
        self._first = share.first - sum(shares[: self.comm.rank])  # of the microbatch, in the batch
        self._targets = self.comm.labelled("targets", "forward").all_gather(share.y, 0, shares)
        own = self._features_of(share.x)
        self._passed[ALL] = Passed(own)
        self._flat = np.ascontiguousarray(own.data.reshape(len(share.x), self.values))
        self._gradient = np.empty_like(self._flat)

    def _features_of(self, x: np.ndarray) -> Tensor:
        """The activations (n, ...) in front of the Flatten."""
        y = self.features(x)
        return y if isinstance(y, Tensor) else Tensor(y)

    def _divisor(self, microbatch: int, part: SubBatch) -> int:
        """The number by which the loss of a sub-batch is divided.

        With variable batch by its own n_j samples among n, for the update of the classifier; what goes back to the
        features is multiplied by n_j / n: the gradient of the mean over the batch, each sub-batch passed through the
        classifier that it met.
        """
        return self.microbatches[microbatch].size if self.optimizer is None else part.size

    def _weight(self, microbatch: int, part: SubBatch) -> float:
        """What a sub-batch counts for in the loss of the batch, beside what its own is divided by."""
        return self._divisor(microbatch, part) / self.microbatches[microbatch].size

    def send_activation(self, stage: int, microbatch: int, sub_batch: int) -> None:
        """Posts this rank's samples of the sub-batch to all others."""
        self._gathered[sub_batch] = self.exchange.start_gather(self._parts[microbatch][sub_batch][0], self._flat)

    def receive_activation(self, stage: int, microbatch: int, sub_batch: int) -> None:
        """Waits for those of all."""
        self._inputs[sub_batch] = Tensor(self._gathered.pop(sub_batch).wait(), requires_grad=True)

    def backward(self, stage: int, microbatch: int, sub_batch: int = ALL) -> None:
        """From the loss of a sub-batch to the classifier's weights and input; from there through the features."""
        passed = self._passed.pop(sub_batch)
        if stage == 0:
            gradient = self._gradient.reshape(passed.result.shape)
            del self._gradient, self._flat
            if passed.result.requires_grad:
                with self.accumulating(microbatch):
                    passed.backward(gradient)
            return
        passed.backward()
        part = self._parts[microbatch][sub_batch][0]
        self.losses[microbatch] += passed.result.item() * self._weight(microbatch, part)
        self._gradients[sub_batch] = passed.input_gradient

    def send_gradient(self, stage: int, microbatch: int, sub_batch: int) -> None:
        """Posts this rank's summands to the owners of the samples."""
        part, gradient = self._parts[microbatch][sub_batch][0], self._gradients.pop(sub_batch)
        if self.parallel.plan.input.has(Replicated):
            self._returning[sub_batch] = self.exchange.start_reduction(part, gradient)
        else:  # whole on every rank
            self._returning[sub_batch] = Posted([gradient[part.rows(self.comm.rank)]], [])

    def receive_gradient(self, stage: int, microbatch: int, sub_batch: int) -> None:
        """Waits for the sums of the summands for this rank's samples."""
        part, total = self._parts[microbatch][sub_batch][0], self._returning.pop(sub_batch).wait()
        self._gradient[part.own[self.comm.rank]] = total * self._weight(microbatch, part)

    def update(self, stage: int, microbatch: int, sub_batch: int = ALL) -> None:
        """Of all weights, or with variable batch of the classifier's after a sub-batch."""
        if sub_batch == ALL:
            self.update_weights()
            return
        assert self.optimizer is not None
        self.optimizer.step()
        self.classifier.zero_grad()

    # -- without gradients -----------------------------------------------------------------------------------------
    def evaluate(self, x: np.ndarray) -> np.ndarray:
        """The network's whole output (n, ...) for samples x (n, ...), the same on every rank, on all of them."""
        shares = partition.shares(len(x), self.comm.size)
        own = self._features_of(x[partition.share(len(x), self.comm.size, self.comm.rank)])
        flat = own.data.reshape(len(own), self.values)
        scores = self.classifier(Tensor(self.comm.labelled("activations", "forward").all_gather(flat, 0, shares)))
        return self.parallel.whole_output(scores.data)

    def free(self) -> None:
        """Frees the communicators that were made (collective)."""
        self.parallel.free()
        self.comm.free()

"""Training a network under a layout: the loop that combines data, network, parallelism and optimizer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from parallel_dl.datasets import Arrivals, Batch, Dataset, Loader, Share, Stream
from parallel_dl.engine import engine_for
from parallel_dl.evaluation import evaluate, own_outputs
from parallel_dl.global_norms import GlobalNorms, made_on_all
from parallel_dl.layout import Layout
from parallel_dl.metrics import Evaluation
from parallel_dl.mpi import Mesh
from parallel_dl.nn import Module, cross_entropy
from parallel_dl.optim import Optimizer
from parallel_dl.partition import share
from parallel_dl.schedule import ALL, Program, execute


@dataclasses.dataclass
class Result:
    """The results of a run, the same on every rank."""

    losses: list[float]
    """one per update: the mean over the global batch, before the update"""
    test_loss: float | None
    """the mean over the test samples, after all updates; None if it cannot be computed"""
    test_accuracy: float | None
    """share of test samples classified correctly; None if the targets are not classes"""
    seconds: float
    """wall-clock seconds of the updates, without start-up and testing"""
    samples_per_second: float
    """of the global batches, in `seconds`"""
    stream: Stream | None = None
    """with an input rate: what ranks with the network's first layers measured of the arriving samples"""
    note: str | None = None
    """why there is no test loss"""


def as_batches(batch: Batch) -> list[Share]:
    """The microbatches as batches of their own: each divides by its own size, if any, and counts its samples from 0."""
    alone = []
    for number, part in enumerate(batch.microbatches):
        whole = share(batch.size, len(batch.microbatches), number)
        size = whole.stop - whole.start
        alone.append(Share(part.x, part.y, part.first - whole.start, max(1, size), size))
    return alone


def sum_of(losses: Sequence[float]) -> float:
    """From the first to the last, as every layout adds them up: `sum` of later Pythons does not."""
    total = 0.0
    for loss in losses:
        total += loss
    return total


class Trainer:
    """Trains `network` (serial maths) under `layout` on the ranks of `mesh`; all ranks call every method together.

    `make_optimizer(parameters)` is called once; with variable batch twice, for the layers after the first Flatten and
    for those before it. It may choose among the parameters; those it leaves out are not updated. `allreduce` is a
    method of `data_parallel.GradientAllReduce`, or a dictionary of its options. `loss` is a function (logits, targets,
    total) that sums over the samples given and divides by `total`. A layout that splits layers, or is a hybrid, turns
    the network, in place, into this rank's part, and needs `input_shape`, the shape of one sample (ValueError without
    it); so does a reproducible layout, for which the network computes in leaves from then on. `clip_norm` clips the
    global gradient norm to this value.

    Raises InputError for a network that is already split, for splits that do not fit, for ranks with different weights,
    for an optimizer of other parameters, for a `clip_norm` that is not above 0, and for `clip_norm` with updates of
    only some of the weights (asynchronous schedules, variable batch).
    """

    def __init__(
        self,
        network: Module,
        make_optimizer: Callable[[Any], Optimizer],
        layout: Layout,
        mesh: Mesh,
        allreduce: str | Mapping[str, Any] = "auto",
        loss: Callable[..., Any] = cross_entropy,
        input_shape: Sequence[int] | None = None,
        clip_norm: float | None = None,
    ) -> None:
        layout.require_clip_norm(clip_norm)
        self.network, self.layout, self.mesh, self.clip_norm = network, layout, mesh, clip_norm
        self.engine = engine = engine_for(network, layout, mesh, loss, input_shape, allreduce)
        self.summation, self.stage, self.divided = engine.summation, engine.stage, engine.divided
        self.parallel, self.pipeline, self.hybrid = engine.parallel, engine.pipeline, engine.hybrid
        self.names, self.parameters = engine.names, engine.parameters  # this rank's
        self.gradients = engine.gradients
        self.is_asynchronous = layout.is_asynchronous
        """whether weights are updated between microbatches"""
        self.updates = 0
        self._norms = GlobalNorms(engine)
        self.optimizer = engine.optimizer(
            lambda parameters: made_on_all(make_optimizer, parameters, self._norms), lambda: self.updates
        )
        self.arrivals: Arrivals | None = None
        self.stage.before_entry = self._take
        self.stage.sum_gradients = self.gradients.all_reduce
        self.stage.update_weights = self._update_between if self.is_asynchronous else self.update

    @property
    def loss(self) -> Callable[..., Any]:
        """The loss function (outputs, targets, total) for the network's outputs on this rank."""
        return self.engine.loss

    @loss.setter
    def loss(self, loss: Callable[..., Any]) -> None:
        self.engine.loss = loss

    def _take(self, microbatch: Share) -> None:
        """Before a microbatch enters the network: waits for its samples, if they come in at a rate."""
        if self.arrivals is not None:
            self.arrivals.take(microbatch.of_all)

    def loader(self, x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> Loader:
        """A loader for this rank's shares of samples x (n, ...) with targets y (n, ...)."""
        return Loader(
            x,
            y,
            batch_size,
            seed=seed,
            rank=self.mesh.data.rank,
            ranks=self.mesh.data.size,
            microbatches=self.layout.microbatches,
            leaves=self.summation.leaves,
        )

    def compute_gradients(self, batch: Batch) -> float:
        """Runs forward and backward on this rank's share, then the all-reduce; returns this rank's summand of the loss.

        Microbatches are accumulated in the order 0, 1, ...; each divides by the size of the whole global batch.
        RuntimeError for an asynchronous schedule, which updates the weights in between: call `step`.
        """
        if self.is_asynchronous:
            raise RuntimeError(f"{self.layout.schedule_name} updates the weights between microbatches: call step()")
        return sum_of(self._run(batch, update=False))

    def _forget_gradients(self) -> None:
        """Clears those of all parameters: the optimizer may have only some."""
        for parameter in self.parameters:
            parameter.grad = None

    def _run(self, batch: Batch, update: bool = True) -> list[float]:
        """This rank's program for the batch, with or without its last update; its summands of the losses."""
        self.network.train()
        self._forget_gradients()
        program = self.engine.program(len(batch.microbatches), batch.size)
        if not update:
            program = tuple(action for action in program if action.kind != "U" or action.sub_batch != ALL)
        if self.is_asynchronous:
            alone = as_batches(batch)
            losses = self._execute(program, alone, [self.updates + number for number in range(len(alone))])
            self.updates += len(alone)
            return losses
        with self.engine.accumulating(self.gradients):
            return [self._synchronous(program, batch.microbatches)]

    def _synchronous(self, program: Program, microbatches: Sequence[Share]) -> float:
        """The sum of the losses; in leaves the gradients are there only after the program's last microbatch."""
        if self.summation.leaves is None:
            return sum_of(self._execute(program, microbatches))
        computing = tuple(action for action in program if action.microbatch != ALL)
        loss = self.summation.gradients(lambda: self._execute(computing, microbatches), len(microbatches))
        execute(program[len(computing) :], self.stage)
        return loss

    def _execute(
        self, program: Program, microbatches: Sequence[Share], updates: Sequence[int] | None = None
    ) -> list[float]:
        """The losses of the microbatches, or of those that they are here."""
        return self.stage.run(program, microbatches, [self.updates] * len(microbatches) if updates is None else updates)

    def step(self, batch: Batch) -> list[float]:
        """Makes one update (asynchronous: one per microbatch); returns this rank's summand of the loss before each.

        An asynchronous update divides by the size of its microbatch.
        """
        return self._run(batch)

    def update(self) -> float:
        """Makes the optimizer's step with the gradients of `compute_gradients`; returns the clipping factor, or 1.

        The factor is min(1, clip_norm / (norm + 1e-6)), as in PyTorch's clip_grad_norm_; it is NaN if the norm is. The
        gradients themselves do not change.
        """
        scale = 1.0
        if self.clip_norm is not None:
            scale = self.clip_norm / (self.gradient_norm() + 1e-6)
            scale = 1.0 if scale > 1 else scale
        if scale == 1:
            self.optimizer.step()  # a rule of the user's own may take no scale
        else:
            self.optimizer.step(scale)
        self.updates += 1
        return scale

    def gradient_norm(self) -> float:
        """The Euclidean norm of all gradients that the optimizer applies, after `compute_gradients`.

        It is the same on every rank. Every value counts once, however many ranks have it. All ranks call it together.
        """
        return self._norms.of_gradients(self.optimizer.parameters)

    def _update_between(self) -> None:
        """An update of this rank's stage by one microbatch."""
        self.optimizer.step()
        self._forget_gradients()

    def fit(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        epochs: int = 1,
        steps: int | None = None,
        report: Callable[[int, int, float], None] | None = None,
        input_rate: float | None = None,
    ) -> Result:
        """Trains on `dataset` for `epochs`, or for exactly `steps` updates, and tests.

        With `input_rate`, samples arrive at that many per second, and training waits for those not there yet.
        `report(updates done, updates in all, mean loss of the updates since the last report)` is called on every rank
        after every epoch.
        """
        self.arrivals = None if input_rate is None else Arrivals(input_rate)
        with self._counted():
            losses, samples, seconds = self._updates(dataset, batch_size, seed, epochs, steps, report)
        found = self.test(dataset.x_test, dataset.y_test)
        stream = None if self.arrivals is None else self.arrivals.measured()
        speed = samples / seconds if seconds else 0.0
        return Result(losses, found.loss, found.accuracy, seconds, speed, stream, found.note)

    def _counted(self) -> AbstractContextManager[None]:
        """What is sent inside is entered in the ledger, if there is one."""
        ledger = self.mesh.world.ledger
        return nullcontext() if ledger is None else ledger.counting()

    def _updates(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        epochs: int,
        steps: int | None,
        report: Callable[[int, int, float], None] | None,
    ) -> tuple[list[float], int, float]:
        """(losses, samples in all, seconds) of the updates."""
        loader = self.loader(dataset.x_train, dataset.y_train, batch_size, seed)
        in_all = self.layout.updates(len(dataset.x_train), batch_size, epochs, steps)
        losses: list[float] = []
        samples, epoch, start = 0, 0, time.perf_counter()
        while len(losses) < in_all:
            local = []
            for batch in loader.epoch(epoch):
                local += self.step(batch)
                samples += batch.size
                if len(losses) + len(local) == in_all:
                    break
            # the losses of an epoch are summed over the ranks at once: an exchange less per update
            losses += self.sum_losses(np.array(local)).tolist()
            epoch += 1
            if report is not None:
                report(len(losses), in_all, float(np.mean(losses[-len(local) :])))
        return losses, samples, time.perf_counter() - start

    def sum_losses(self, local: np.ndarray) -> np.ndarray:
        """The losses of the global batch, from this rank's summands `local`."""
        return self.engine.sum_losses(local)

    def test(self, x: np.ndarray, y: np.ndarray, batch_size: int = 1024) -> Evaluation:
        """The mean loss of samples x (n, ...) with targets y (n, ...), and the share of samples classified correctly.

        The ranks divide the work. Accuracy needs class numbers y (n,) and scores (n, classes).
        """
        return evaluate(self.engine, x, y, batch_size)

    def own_outputs(self, x: np.ndarray, batch_size: int = 1024) -> dict[int, np.ndarray]:
        """The outputs that this rank has in `test(x, ...)`: index of the first sample -> whole outputs (k, ...)."""
        return own_outputs(self.engine, x, batch_size)

    def whole(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Whole arrays, on every rank, from this replica's `arrays`, by the name of their parameter or buffer."""
        return self.divided.gather(arrays)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> whole values of every parameter and buffer, on every rank."""
        return self.divided.state_dict()

    def gather_state(self) -> dict[str, np.ndarray] | None:
        """As `state_dict`, but only the first rank of each replica gets it; the others get None."""
        return self.divided.gather_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets every parameter and buffer from the whole values in `state`; each rank takes its shards."""
        self.divided.load_state_dict(state)

    def layout_as_dict(self) -> dict[str, Any]:
        """The layout for JSON, with the splits in use."""
        splits = {} if self.parallel is None else self.parallel.plan.splits
        return {**self.layout.as_dict(), "split": splits}

    def weights_sha256(self) -> str:
        """A digest of all whole weights by name: equal exactly when every bit is."""
        return self.divided.sha256()

    def free(self) -> None:
        """Releases shared memory and communicators."""
        self.gradients.free()
        self.engine.free()

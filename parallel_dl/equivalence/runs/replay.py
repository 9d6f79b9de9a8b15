"""The noise floor: a serial run once more, with its sums over samples in another order."""

from __future__ import annotations

import numpy as np

from parallel_dl.autograd import Tensor, no_grad
from parallel_dl.equivalence.compare.runs import compare
from parallel_dl.equivalence.rounding.copies import copied
from parallel_dl.equivalence.rounding.samples import compute_gradients
from parallel_dl.equivalence.runs.outcome import outcome_of
from parallel_dl.equivalence.runs.record import Experiment, Run, batches, local_gradients, start, update
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.nn import Module


def replay(experiment: Experiment, microbatches: int = 1, seed: int = 0, evaluate: bool = True) -> Run:
    """A serial run in which each loss and each gradient is the sum of those of the samples, in a random order.

    In evaluation, too, each sample is passed by itself. If the network treats each sample by itself, this run differs
    from `record`'s by rounding alone.
    """
    trainer = start(experiment, Layout(microbatches=microbatches), Mesh.serial())
    run = Run(trainer.layout)
    random = np.random.default_rng(seed)
    for batch in batches(experiment, trainer):
        run.losses.append(compute_gradients(trainer, batch, random))
        run.gradients.append(local_gradients(trainer))
        update(trainer, run)
    evaluate = evaluate and _is_the_same_twice(trainer.network, experiment.x[:1])
    run.outcome = outcome_of(trainer, experiment.x, experiment.y, evaluate=evaluate, batch_size=1)
    trainer.free()
    return run


def _is_the_same_twice(network: Module, x: np.ndarray) -> bool:
    """Whether a second call in evaluation mode gives the same: if not, it matters how many calls there are."""
    network, _ = copied(network, None)
    network.eval()
    with no_grad():
        first, second = (np.array(y.data if isinstance(y, Tensor) else y) for y in (network(x), network(x)))
    return np.array_equal(first, second, equal_nan=True)


def noise_floor(experiment: Experiment, serial: Run, microbatches: int = 1) -> float:
    """The largest error of a replay, relative to the sum of magnitudes: what a correct parallel run may be off by."""
    evaluate = serial.outcome is None or serial.outcome.note is None
    return compare(serial, replay(experiment, microbatches, evaluate=evaluate)).worst.error

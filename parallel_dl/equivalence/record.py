"""Records a run: losses, every gradient, optimizer state and weights, step by step."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.equivalence.magnitudes import Magnitudes
from parallel_dl.equivalence.samples import sums_of_magnitudes
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.nn import Module, cross_entropy
from parallel_dl.optim import Optimizer
from parallel_dl.trainer import Trainer

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Experiment:
    """What is to be computed, without a word about how: the same for the serial and the parallel run."""

    build: Callable[[], Module]
    x: np.ndarray
    y: np.ndarray
    make_optimizer: Callable[[Any], Optimizer]
    batch_size: int
    steps: int = 5
    seed: int = 0
    dtype: str = "float64"
    loss: Callable[..., Any] = cross_entropy
    prepare: Callable[[Module], None] | None = None
    """called with the initialized network, for example to make its weights integers"""


@dataclasses.dataclass
class Run:
    """What a run computed, assembled from its shards: one entry per step. Arrays by parameter name."""

    layout: Layout
    losses: list[float] = dataclasses.field(default_factory=list)
    gradients: list[Arrays] = dataclasses.field(default_factory=list)
    state: list[Arrays] = dataclasses.field(default_factory=list)
    """of the optimizer after the update, like "fc1.weight momentum\""""
    weights: list[Arrays] = dataclasses.field(default_factory=list)
    """after the update; buffers, too"""
    replicas_equal: bool = True
    """whether all replicas ended with the same bits"""
    magnitudes: list[dict[str, Arrays]] | None = None
    """serial runs: the sums of the magnitudes that were added up, {"loss", "gradients", "state", "weights"}"""


def record(
    experiment: Experiment, layout: Layout | None = None, mesh: Mesh | None = None, allreduce: str = "auto"
) -> Run:
    """Runs the experiment under a layout on the ranks of `mesh` (together), or serially, without both.

    The serial run also measures magnitudes: what errors of rounding are judged against. With batch norm, whose
    statistics are those of a microbatch, a serial run computes the same only with as many microbatches: give it
    `Layout(microbatches=...)`.
    """
    serial = mesh is None
    mesh, layout = mesh or Mesh.serial(), layout or Layout()
    network = experiment.build().initialize(experiment.seed, experiment.dtype)
    if experiment.prepare is not None:
        experiment.prepare(network)
    shape = experiment.x.shape[1:]
    trainer = Trainer(network, experiment.make_optimizer, layout, mesh, allreduce, experiment.loss, shape)
    run = Run(layout, magnitudes=[] if serial else None)
    magnitudes = Magnitudes(network, trainer.optimizer)
    loader = trainer.loader(experiment.x, experiment.y, experiment.batch_size, experiment.seed)
    epoch = 0
    while len(run.losses) < experiment.steps:
        for batch in loader.epoch(epoch):
            if len(run.losses) == experiment.steps:
                break
            measured = sums_of_magnitudes(trainer, batch) if serial else None
            local = trainer.compute_gradients(batch)
            run.losses.append(float(trainer.sum_losses(np.array([local]))[0]))
            gradients = {
                n: np.array(p.grad) for n, p in zip(trainer.names, trainer.optimizer.parameters) if p.grad is not None
            }
            run.gradients.append(trainer.whole(gradients))
            trainer.optimizer.step()
            trainer.updates += 1
            state = trainer.optimizer.state_dict()["state"]
            run.state.append({})
            for key in trainer.optimizer.state_names:
                whole = trainer.whole({n: s[key] for n, s in zip(trainer.names, state)})
                run.state[-1] |= {f"{n} {key}": array for n, array in whole.items()}
            run.weights.append(trainer.state_dict())
            if measured is not None and run.magnitudes is not None:
                loss, gradients = measured
                run.magnitudes.append({"losses": {"": loss}, "gradients": gradients, **magnitudes.update(gradients)})
        epoch += 1
    digests = mesh.world.all_gather_object(_digest(run))
    run.replicas_equal = len(set(digests)) == 1
    trainer.free()
    return run


def _digest(run: Run) -> str:
    digest = hashlib.sha256()
    for arrays in (*run.gradients, *run.state, *run.weights):
        for name, array in sorted(arrays.items()):
            digest.update(name.encode())
            digest.update(array.tobytes())
    return digest.hexdigest()

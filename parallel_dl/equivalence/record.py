"""Records a run: losses, every gradient, optimizer state and weights, step by step."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parallel_dl.datasets import Batch
from parallel_dl.equivalence.magnitudes import Magnitudes
from parallel_dl.equivalence.outcome import Outcome, outcome_of
from parallel_dl.equivalence.own_rules import MeasuredRule, is_known
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
    clip_norm: float | None = None
    """the norm to which all gradients together are clipped"""


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
    """serial runs: the sums of the magnitudes that were added up, {"losses", "gradients", "state", "weights"}"""
    outcome: Outcome | None = None
    """after all updates"""


def record(
    experiment: Experiment,
    layout: Layout | None = None,
    mesh: Mesh | None = None,
    allreduce: str = "auto",
    evaluate: bool = True,
) -> Run:
    """Runs the experiment under a layout on the ranks of `mesh` (together), or serially, without both.

    In the end the network is evaluated, unless `evaluate` says not to: a layer may be made for training only.

    The serial run also measures magnitudes: what errors of rounding are judged against. With batch norm, whose
    statistics are those of a microbatch, a serial run computes the same only with as many microbatches: give it
    `Layout(microbatches=...)`.
    """
    serial = mesh is None
    mesh = mesh or Mesh.serial()
    trainer = start(experiment, layout or Layout(), mesh, allreduce)
    _require_one_rule(trainer)
    run = Run(trainer.layout, magnitudes=[] if serial else None)
    magnitudes = _magnitudes(trainer) if serial else None
    for batch in batches(experiment, trainer):
        measured = sums_of_magnitudes(trainer, batch) if serial else None
        local = trainer.compute_gradients(batch)
        run.losses.append(float(trainer.sum_losses(np.array([local]))[0]))
        run.gradients.append(trainer.whole(local_gradients(trainer)))
        if isinstance(magnitudes, MeasuredRule):
            magnitudes.before_update()
        clipped = update(trainer, run)
        if measured is not None and magnitudes is not None and run.magnitudes is not None:
            loss, gradients = measured
            run.magnitudes.append(
                {"losses": {"": loss}, "gradients": gradients, **magnitudes.update(gradients, clipped)}
            )
    digests = mesh.world.all_gather_object(_digest(run))
    run.replicas_equal = len(set(digests)) == 1
    of_weights = run.magnitudes[-1]["weights"] if run.magnitudes else None
    run.outcome = outcome_of(trainer, experiment.x, experiment.y, of_weights, evaluate)
    trainer.free()
    return run


def _magnitudes(trainer: Trainer) -> Magnitudes:
    """What follows the trainer's optimizer with magnitudes."""
    kind = Magnitudes if is_known(trainer.optimizer) else MeasuredRule
    return kind(trainer.network, trainer.optimizer)


def _require_one_rule(trainer: Trainer) -> None:
    """AssertionError, on every rank, for optimizers with another rule or other state: they could not be gathered."""
    rules = trainer.mesh.world.all_gather_object((trainer.optimizer.rule, trainer.optimizer.state_names))
    for rank, rule in enumerate(rules):
        if rule != rules[0]:
            first, other = (
                f"{name or 'a rule'} with state {', '.join(state) or 'none'}" for name, state in (rules[0], rule)
            )
            raise AssertionError(f"the optimizers differ: that of rank 0 is {first}, that of rank {rank} is {other}")


def start(experiment: Experiment, layout: Layout, mesh: Mesh, allreduce: str = "auto") -> Trainer:
    """The trainer of an experiment under a layout, before its first step."""
    network = experiment.build().initialize(experiment.seed, experiment.dtype, fill=experiment.prepare is not None)
    if experiment.prepare is not None:
        experiment.prepare(network)
    shape = experiment.x.shape[1:]
    return Trainer(
        network, experiment.make_optimizer, layout, mesh, allreduce, experiment.loss, shape, experiment.clip_norm
    )


def batches(experiment: Experiment, trainer: Trainer) -> Iterator[Batch]:
    """This rank's parts of the batches of all steps."""
    loader = trainer.loader(experiment.x, experiment.y, experiment.batch_size, experiment.seed)
    endless = (batch for epoch in itertools.count() for batch in loader.epoch(epoch))
    return itertools.islice(endless, experiment.steps)


def local_gradients(trainer: Trainer) -> Arrays:
    """Name -> a copy of what this rank has of each gradient; nothing of parameters without one."""
    return {name: np.array(p.grad) for name, p in zip(trainer.names, trainer.parameters) if p.grad is not None}


def optimizer_names(trainer: Trainer) -> list[str]:
    """The names of the parameters that the optimizer has, in its order."""
    names = {id(parameter): name for name, parameter in zip(trainer.names, trainer.parameters)}
    return [names[id(parameter)] for parameter in trainer.optimizer.parameters]


def update(trainer: Trainer, run: Run) -> float:
    """The optimizer's step; its state and the weights after it are entered in `run`. Returns the clip factor, or 1."""
    clipped = trainer.update()
    state = dict(zip(optimizer_names(trainer), trainer.optimizer.state_dict()["state"]))
    run.state.append({})
    for key in trainer.optimizer.state_names:
        whole = trainer.whole({name: own[key] for name, own in state.items() if key in own})
        run.state[-1] |= {f"{n} {key}": array for n, array in whole.items()}
    run.weights.append(trainer.state_dict())
    return clipped


def _digest(run: Run) -> str:
    digest = hashlib.sha256(np.array(run.losses).tobytes())
    for arrays in (*run.gradients, *run.state, *run.weights):
        for name, array in sorted(arrays.items()):
            digest.update(name.encode())
            digest.update(array.tobytes())
    return digest.hexdigest()

"""Records a run: losses, every gradient, optimizer state and weights, step by step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from parallel_dl.datasets import Batch
from parallel_dl.equivalence.compare.runs import measured_noise
from parallel_dl.equivalence.rounding.last_bits import round_otherwise
from parallel_dl.equivalence.rounding.own_rules import before_update, magnitudes_of, may_take_signs
from parallel_dl.equivalence.rounding.samples import sums_of_magnitudes
from parallel_dl.equivalence.runs.outcome import Outcome, are_same, outcome_of
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
    changes: Callable[[Trainer], Iterator[None]] | None = None
    """a generator, of which every rank has its own: runs on to its next yield before each step; see `programs`"""


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
    noise: list[dict[str, float]] | None = None
    """serial runs: how far rounding alone moves each quantity, relative to its magnitudes; see `rounding`"""
    buffers: frozenset[str] = frozenset()
    """which of the weights are buffers"""
    repeats: bool = True
    """serial runs: whether a second one had the same losses, bit by bit"""
    outcome: Outcome | None = None
    """what is left after all updates"""


def record(
    experiment: Experiment,
    layout: Layout | None = None,
    mesh: Mesh | None = None,
    allreduce: str | Mapping[str, Any] = "auto",
    evaluate: bool = True,
) -> Run:
    """Runs the experiment under a layout on the ranks of `mesh` (together), or serially if it is given neither.

    In the end the network is evaluated, unless `evaluate` says not to: a layer may be made for training only.

    For a serial run, magnitudes and noise, which errors of rounding are judged against, are measured as well, in
    separate runs. With batch norm, whose statistics are those of a microbatch, a serial run computes the same only with
    as many microbatches: give it `Layout(microbatches=...)`.
    """
    alone = mesh is None
    layout, mesh = layout or Layout(), mesh or Mesh.serial()
    trainer = start(experiment, layout, mesh, allreduce)
    trainer.network.eval()  # as after a test: a step must go back to training mode by itself
    _require_one_rule(trainer)
    run = _trained(experiment, trainer)
    digests = mesh.world.all_gather_object(_digest(run))
    run.replicas_equal = len(set(digests)) == 1
    if not alone:
        run.outcome = outcome_of(trainer, experiment.x, experiment.y, evaluate=evaluate)
    last = local_gradients(trainer)
    trainer.free()
    lost = not are_same(last, local_gradients(trainer))
    if run.outcome is not None and any(mesh.world.all_gather_object(lost)):
        run.outcome.faults.append("a gradient, which is not what it was before Trainer.free(),")
    if alone:
        run.magnitudes, again, run.outcome = _measured(experiment, layout, evaluate)
        evaluate = bool(run.outcome.evaluation)
        run.repeats = np.array_equal(run.losses, again, equal_nan=True)
        moved = functools.partial(_moved_by_rounding, experiment, layout, evaluate)
        run.noise = measured_noise(run, moved, may_jump=may_take_signs(trainer.optimizer))
    return run


def _trained(experiment: Experiment, trainer: Trainer) -> Run:
    """What the trainer computes in all steps."""
    run = Run(trainer.layout, buffers=frozenset(name for name, _ in trainer.network.named_buffers()))
    for batch in batches(experiment, trainer):
        local = trainer.compute_gradients(batch)
        run.losses.append(float(trainer.sum_losses(np.array([local]))[0]))
        run.gradients.append(trainer.whole(local_gradients(trainer)))
        update(trainer, run)
    return run


def _measured(
    experiment: Experiment, layout: Layout, evaluate: bool
) -> tuple[list[dict[str, Arrays]], list[float], Outcome]:
    """The magnitudes of each step of the serial run, which is made once more; the losses of that run, and its end."""
    trainer = start(experiment, layout, Mesh.serial())
    magnitudes = magnitudes_of(trainer.network, trainer.optimizer)
    found: list[dict[str, Arrays]] = []
    losses: list[float] = []
    for batch in batches(experiment, trainer):
        loss, gradients = sums_of_magnitudes(trainer, batch)
        local = trainer.compute_gradients(batch)
        losses.append(float(trainer.sum_losses(np.array([local]))[0]))
        before_update(magnitudes)
        clipped = trainer.update()
        found.append({"losses": {"": loss}, "gradients": gradients, **magnitudes.update(gradients, clipped)})
    of_weights = found[-1]["weights"] if found else {}
    outcome = outcome_of(trainer, experiment.x, experiment.y, of_weights, evaluate)
    trainer.free()
    return found, losses, outcome


def _moved_by_rounding(experiment: Experiment, layout: Layout, evaluate: bool, seed: int) -> Run:
    """The serial run with other last bits."""
    trainer = start(experiment, layout, Mesh.serial())
    round_otherwise(trainer, seed)
    run = _trained(experiment, trainer)
    run.outcome = outcome_of(trainer, experiment.x, experiment.y, evaluate=evaluate)
    trainer.free()
    return run


def _require_one_rule(trainer: Trainer) -> None:
    """AssertionError, on every rank, for optimizers with another rule or other state: they could not be gathered."""
    rules = trainer.mesh.world.all_gather_object((trainer.optimizer.rule, trainer.optimizer.state_names))
    for rank, rule in enumerate(rules):
        if rule != rules[0]:
            first, other = (
                f"{name or 'a rule'} with state {', '.join(state) or 'none'}" for name, state in (rules[0], rule)
            )
            raise AssertionError(f"the optimizers differ: that of rank 0 is {first}, that of rank {rank} is {other}")


def start(experiment: Experiment, layout: Layout, mesh: Mesh, allreduce: str | Mapping[str, Any] = "auto") -> Trainer:
    """The trainer of an experiment under a layout, before its first step."""
    network, shape = initial(experiment), experiment.x.shape[1:]
    return Trainer(
        network,
        experiment.make_optimizer,
        layout,
        mesh,
        allreduce,
        experiment.loss,
        shape,
        experiment.clip_norm,
    )


def initial(experiment: Experiment) -> Module:
    """The network before the first step; its weights are drawn when they are first used."""
    network = experiment.build().initialize(experiment.seed, experiment.dtype, fill=experiment.prepare is not None)
    if experiment.prepare is not None:
        experiment.prepare(network)
    return network


def batches(experiment: Experiment, trainer: Trainer) -> Iterator[Batch]:
    """This rank's parts of the batches of all steps; before each, what the program changes then is changed."""
    loader = trainer.loader(experiment.x, experiment.y, experiment.batch_size, experiment.seed)
    endless = (batch for epoch in itertools.count() for batch in loader.epoch(epoch))
    changes = changes_of(experiment, trainer)
    for batch in itertools.islice(endless, experiment.steps):
        next(changes, None)
        yield batch


def changes_of(experiment: Experiment, trainer: Trainer) -> Iterator[None]:
    """What the program changes under way: each `next` goes on to what is done before a step."""
    return iter(()) if experiment.changes is None else experiment.changes(trainer)


def local_gradients(trainer: Trainer) -> Arrays:
    """Name -> a copy of what this rank has of each gradient; nothing of parameters without one."""
    return {name: np.array(p.grad) for name, p in zip(trainer.names, trainer.parameters) if p.grad is not None}


def optimizer_state(trainer: Trainer) -> Arrays:
    """The optimizer's whole state, like "fc1.weight momentum"."""
    names = {id(parameter): name for name, parameter in zip(trainer.names, trainer.parameters)}
    own = dict(zip([names[id(one)] for one in trainer.optimizer.parameters], trainer.optimizer.state_dict()["state"]))
    found: Arrays = {}
    for key in trainer.optimizer.state_names:
        whole = trainer.whole({name: arrays[key] for name, arrays in own.items() if key in arrays})
        found |= {f"{name} {key}": array for name, array in whole.items()}
    return found


def update(trainer: Trainer, run: Run) -> float:
    """The optimizer's step; its state and the weights after it are entered in `run`. Returns the clip factor, or 1."""
    clipped = trainer.update()
    run.state.append(optimizer_state(trainer))
    run.weights.append(trainer.state_dict())
    return clipped


def _digest(run: Run) -> str:
    digest = hashlib.sha256(np.array(run.losses).tobytes())
    for arrays in (*run.gradients, *run.state, *run.weights):
        for name, array in sorted(arrays.items()):
            digest.update(name.encode())
            digest.update(array.tobytes())
    return digest.hexdigest()

"""Serial programs for layouts that compute something other than one update with the whole batch.

They make the same updates in the same order, and know nothing of ranks:

weight stashing     (schedule "pipedream") microbatch j on stage s of p meets weights p - s - 1 updates old, or those at
                    the start of the batch; its gradient updates the newest (Narayanan et al. 2019, section 3.3)
variable batch      the layers after the first Flatten are updated after each part of the batch, those before it once;
                    both have the learning rate of the iteration
local batch norm    each share is normalised by itself; running statistics are the mean of those of the shares

Each can be run with its sums over samples in another order, too: the difference is its noise floor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.cost.stages import cut_stages
from parallel_dl.datasets import Batch, Loader, Share
from parallel_dl.equivalence.compare.runs import compare, measured_noise, samples_are_mixed
from parallel_dl.equivalence.rounding.last_bits import round_otherwise
from parallel_dl.equivalence.rounding.own_rules import before_update, magnitudes_of, may_take_signs
from parallel_dl.equivalence.rounding.samples import each_sample, sums_of_magnitudes
from parallel_dl.equivalence.runs.outcome import outcome_of
from parallel_dl.equivalence.runs.record import (
    Arrays,
    Experiment,
    Run,
    batches,
    changes_of,
    optimizer_names,
    start,
    update,
)
from parallel_dl.equivalence.runs.reference import Reference
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh, one_rank
from parallel_dl.optim import Optimizer
from parallel_dl.trainer import Trainer

Random = np.random.Generator | None
"""for a random order of sums over samples"""


def program_of(network: nn.Module, layout: Layout) -> str | None:
    """The name of the serial program that this layout is compared with; None: one update with the whole batch.

    InputError for a network and a layout that have none.
    """
    statistics = {module.statistics for _, module in network.named_modules() if isinstance(module, nn.BatchNorm)}
    local = "local" in statistics and layout.dp > 1
    if layout.is_asynchronous:
        if local:
            raise InputError(f"`schedule` {layout.schedule_name}: is not compared with local batch norm; valid is 1f1b")
        return "weight stashing"
    if layout.variable_batch:
        if statistics:
            raise InputError("`variable_batch`: is not compared for networks with batch norm; valid is one without")
        return "variable batch"
    if local and statistics != {"local"}:
        raise InputError("batch norm with local and with global statistics: valid is one of the two in a network")
    return "local batch norm" if local else None


def replayed(experiment: Experiment, layout: Layout, seed: int | None = None, moved: int | None = None) -> Run:
    """The run of `program_of` for this layout, with magnitudes.

    With a seed its sums over samples are in a random order; with `moved`, another seed, it has other last bits. Then it
    has no magnitudes.
    """
    program = program_of(experiment.build(), layout)
    assert program is not None
    make = {"weight stashing": _weight_stashing, "variable batch": _variable_batch, "local batch norm": _local_norm}
    trainer = start(experiment, Layout(microbatches=layout.microbatches), Mesh.serial())
    if moved is not None:
        round_otherwise(trainer, moved)
    run = Run(layout, magnitudes=[] if seed is None and moved is None else None)
    make[program](experiment, layout, trainer, run, None if seed is None else np.random.default_rng(seed))
    of_weights = run.magnitudes[-1]["weights"] if run.magnitudes else None
    run.outcome = outcome_of(trainer, experiment.x, experiment.y, of_weights)
    trainer.free()
    return run


def reference_of_program(experiment: Experiment, layout: Layout) -> Reference:
    """That run, made as if there were no other rank, and its noise floor."""
    with one_rank():
        run = replayed(experiment, layout)
        trainer = start(experiment, Layout(microbatches=layout.microbatches), Mesh.serial())
        may_jump = may_take_signs(trainer.optimizer)
        trainer.free()
        run.noise = measured_noise(run, lambda seed: replayed(experiment, layout, moved=seed), may_jump)
        by_samples = replayed(experiment, layout, seed=0)
    return Reference(run, compare(run, by_samples).worst.error, None, samples_are_mixed(run, by_samples))


def record_updates(
    experiment: Experiment, layout: Layout, mesh: Mesh, allreduce: str | Mapping[str, Any] = "auto"
) -> Run:
    """As `record`, under an asynchronous schedule: an entry for each update.

    Between the updates of a batch the stages are at different ones: weights and state are those after the last.
    """
    trainer = start(experiment, layout, mesh, allreduce)
    trainer.network.eval()  # as after a test: a step must go back to training mode by itself
    run = Run(trainer.layout)
    for batch in batches(experiment, trainer):
        losses = trainer.sum_losses(np.array(trainer.step(batch))).tolist()
        for number, loss in enumerate(losses, start=1):
            run.losses.append(loss)
            run.gradients.append({})
            last = number == len(losses)
            run.state.append(_state(trainer) if last else {})
            run.weights.append(trainer.state_dict() if last else {})
    bits = np.array(run.losses).tobytes()  # what is not a number is not equal to itself
    ends = mesh.world.all_gather_object((bits, trainer.weights_sha256()))
    run.replicas_equal = all(end == ends[0] for end in ends)
    run.outcome = outcome_of(trainer, experiment.x, experiment.y)
    trainer.free()
    return run


def _state(trainer: Trainer) -> Arrays:
    """The optimizer's whole state."""
    own = dict(zip(optimizer_names(trainer), trainer.optimizer.state_dict()["state"]))
    found: Arrays = {}
    for key in trainer.optimizer.state_names:
        whole = trainer.whole({name: arrays[key] for name, arrays in own.items() if key in arrays})
        found |= {f"{name} {key}": array for name, array in whole.items()}
    return found


def _gradients(trainer: Trainer, batch: Batch, random: Random) -> float:
    """Leaves the gradients of a batch in the parameters; returns its loss."""
    if random is None:
        return trainer.compute_gradients(batch)
    summands = [(loss, gradients) for loss, gradients, _ in each_sample(trainer, batch)]
    order = random.permutation(len(summands))
    for name, parameter in trainer.network.named_parameters():
        parameter.grad = _sum([summands[n][1][name] for n in order if name in summands[n][1]])
    return float(sum(summands[n][0] for n in order))


def _sum(arrays: list[np.ndarray]) -> np.ndarray | None:
    """One after the other; None of none."""
    total = None
    for array in arrays:
        total = array.copy() if total is None else total + array
    return total


# -- weight stashing -----------------------------------------------------------------------------------------------
def _weight_stashing(experiment: Experiment, layout: Layout, trainer: Trainer, run: Run, random: Random) -> None:
    network = trainer.network
    stages = cut_stages(network, experiment.x.shape[1:], layout.pp, layout.stages)
    stage_of = {name: stage for stage in range(len(stages)) for name in stages.layers(stage)}
    magnitudes = magnitudes_of(network, trainer.optimizer)
    for batch in batches(experiment, trainer):
        versions: list[Arrays] = []
        for number, of_batch in enumerate(batch.microbatches):
            size = len(of_batch.x)  # a batch of its own: it divides by its size, and counts its samples from 0
            part = Share(of_batch.x, of_batch.y, 0, max(1, size), size)
            versions.append({name: parameter.data.copy() for name, parameter in network.named_parameters()})
            for name, parameter in network.named_parameters():
                delay = len(stages) - 1 - stage_of[name.partition(".")[0]]
                parameter.data[...] = versions[max(0, number - delay)][name]
            alone = Batch(batch.step, part.size, [part])
            measured = sums_of_magnitudes(trainer, alone) if run.magnitudes is not None else None
            run.losses.append(_gradients(trainer, alone, random))
            for name, parameter in network.named_parameters():
                parameter.data[...] = versions[-1][name]
            before_update(magnitudes)
            trainer.update()
            last = number == len(batch.microbatches) - 1
            run.gradients.append({})
            run.state.append(_state(trainer) if last else {})
            run.weights.append(trainer.state_dict() if last else {})
            if run.magnitudes is not None and measured is not None:
                loss, sums = measured
                run.magnitudes.append({"losses": {"": loss}, "gradients": {}, **magnitudes.update(sums)})


# -- variable batch ------------------------------------------------------------------------------------------------
def places_of_parts(scheme: str, ranks: int, samples: int) -> list[list[int]]:
    """Indices in the batch of the samples of each part: b, rank after rank; c, a piece of every rank's in each."""
    shares = np.array_split(np.arange(samples), ranks)
    if scheme == "b":
        return [share.tolist() for share in shares]
    pieces = [np.array_split(share, ranks) for share in shares]
    return [[int(place) for of_rank in pieces for place in of_rank[number]] for number in range(ranks)]


class _Half:
    """The layers before the first Flatten, or those from it on, with an optimizer of their own."""

    def __init__(self, network: nn.Module, layers: list[nn.Module], experiment: Experiment) -> None:
        self.layers = layers
        own = {id(parameter) for layer in layers for parameter in layer.parameters()}
        self.named = {name: p for name, p in network.named_parameters() if id(p) in own}
        self.optimizer: Optimizer = experiment.make_optimizer(list(self.named.values()))
        self.magnitudes = magnitudes_of(network, self.optimizer)

    def take_rates_of(self, iteration: Callable[[], int]) -> None:
        """Lets policies give the learning rate of the iteration, in which a half may be updated several times."""
        for group in self.optimizer.param_groups:
            if callable(policy := group["lr"]):
                group["lr"] = lambda _, policy=policy: policy(iteration())

    def forward(self, x: np.ndarray | Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if isinstance(x, Tensor) else Tensor(x)

    def step(self, sums: Arrays) -> dict[str, Arrays]:
        """An update; the magnitudes of state and weights after it."""
        before_update(self.magnitudes)
        self.optimizer.step()
        found = self.magnitudes.update(sums)
        self.optimizer.zero_grad()
        return found

    def take(self) -> Arrays:
        """The gradients there are; the parameters have none afterwards."""
        found = {name: np.array(p.grad) for name, p in self.named.items() if p.grad is not None}
        for parameter in self.named.values():
            parameter.grad = None
        return found

    def put(self, summands: list[Arrays]) -> None:
        """Sums, as gradients."""
        for name, parameter in self.named.items():
            parameter.grad = _sum([arrays[name] for arrays in summands if name in arrays])


def _variable_batch(experiment: Experiment, layout: Layout, trainer: Trainer, run: Run, random: Random) -> None:
    """Sample by sample: without batch norm the gradient of a part is the sum of those of its samples."""
    network = trainer.network.train()
    layers = list(network._modules.values())
    at = next(n for n, layer in enumerate(layers) if any(isinstance(m, nn.Flatten) for _, m in layer.named_modules()))
    features, classifier = (_Half(network, half, experiment) for half in (layers[:at], layers[at:]))
    trainer.optimizer = features.optimizer
    classifier.take_rates_of(lambda: trainer.updates)
    for iteration, batch in enumerate(batches(experiment, trainer)):
        returned: dict[int, tuple[Tensor, np.ndarray]] = {}
        loss, sum_of_losses = 0.0, 0.0
        of_classifier: dict[str, Arrays] = {"weights": dict(classifier.magnitudes.weights)}
        for places in places_of_parts(layout.scheme, layout.dp, batch.size):
            summands: list[Arrays] = []
            for place in places if random is None else random.permutation(places):
                network.set_position(iteration, int(place))
                own = features.forward(batch.x[place : place + 1])
                leaf = Tensor(own.data.copy(), requires_grad=True)
                value = trainer.loss(classifier.forward(leaf), batch.y[place : place + 1], len(places))
                value.backward()
                weight = len(places) / batch.size
                loss, sum_of_losses = loss + value.item() * weight, sum_of_losses + abs(value.item()) * weight
                assert leaf.grad is not None
                returned[int(place)] = own, leaf.grad * weight
                summands.append(classifier.take())
            if places:
                classifier.put(summands)
                of_classifier = classifier.step(_magnitudes(summands))
        summands = []
        for place in sorted(returned) if random is None else random.permutation(sorted(returned)):
            own, gradient = returned[int(place)]
            own.backward(gradient)
            summands.append(features.take())
        features.put(summands)
        run.losses.append(loss)
        run.gradients.append({name: np.array(p.grad) for name, p in features.named.items() if p.grad is not None})
        sums = _magnitudes(summands)
        of_features = features.step(sums)
        trainer.updates += 1
        run.state.append(_state(trainer))
        run.weights.append(network.state_dict())
        weights = of_features["weights"] | {name: of_classifier["weights"][name] for name in classifier.named}
        if run.magnitudes is not None:
            losses = {"": np.array([sum_of_losses])}
            run.magnitudes.append(
                {"losses": losses, "gradients": sums, "state": of_features["state"], "weights": weights}
            )


def _magnitudes(summands: list[Arrays]) -> Arrays:
    found: Arrays = {}
    for arrays in summands:
        for name, array in arrays.items():
            found[name] = found.get(name, 0.0) + np.abs(array)
    return found


# -- local batch norm ----------------------------------------------------------------------------------------------
def _local_norm(experiment: Experiment, layout: Layout, trainer: Trainer, run: Run, random: Random) -> None:
    network = trainer.network
    magnitudes = magnitudes_of(network, trainer.optimizer)
    changes = changes_of(experiment, trainer)
    for of_ranks in itertools.islice(_shares(experiment, layout), experiment.steps):
        next(changes, None)
        before = {name: array.copy() for name, array in network.named_buffers()}
        means = {name: np.zeros(array.shape) for name, array in before.items()}
        losses, sums = np.zeros(1), {name: np.zeros(p.shape) for name, p in network.named_parameters()}
        loss, summands = 0.0, []
        for batch in of_ranks:
            _set(network, before)
            if run.magnitudes is not None:
                measured = sums_of_magnitudes(trainer, batch)
                losses += measured[0]
                for name, array in measured[1].items():
                    sums[name] += array
            loss += _gradients(trainer, batch, random)
            summands.append({name: np.array(p.grad) for name, p in network.named_parameters() if p.grad is not None})
            for name, array in network.named_buffers():
                means[name] += array / len(of_ranks)
        _set(network, means)
        for name, parameter in network.named_parameters():
            parameter.grad = _sum([gradients[name] for gradients in summands if name in gradients])
        run.losses.append(loss)
        run.gradients.append({name: np.array(p.grad) for name, p in network.named_parameters() if p.grad is not None})
        before_update(magnitudes)
        clipped = update(trainer, run)
        if run.magnitudes is not None:
            run.magnitudes.append({"losses": {"": losses}, "gradients": sums, **magnitudes.update(sums, clipped)})


def _shares(experiment: Experiment, layout: Layout) -> Iterator[list[Batch]]:
    """Of every step: the parts of the batch that the ranks of the data axis have."""
    m, ranks = layout.microbatches, layout.dp
    whole = Loader(experiment.x, experiment.y, experiment.batch_size, seed=experiment.seed, microbatches=m)
    for batch in (batch for epoch in itertools.count() for batch in whole.epoch(epoch)):
        of_ranks: list[list[Share]] = [[] for _ in range(ranks)]
        for part in batch.microbatches:
            for own, places in zip(of_ranks, np.array_split(np.arange(len(part.x)), ranks)):
                first = int(places[0]) if len(places) else 0
                own.append(Share(part.x[places], part.y[places], part.first + first, part.size, part.of_all))
        yield [Batch(batch.step, batch.size, parts) for parts in of_ranks]


def _set(network: nn.Module, buffers: Mapping[str, np.ndarray]) -> None:
    for name, array in network.named_buffers():
        array[...] = buffers[name]

"""The serial program of PipeDream's schedule: weights of earlier versions, an update after each microbatch.

Microbatch j on stage s of p meets weights p - s - 1 updates old, or those at the start of the batch; its gradient
updates the newest (Narayanan et al. 2019, section 3.3).
"""

from __future__ import annotations

from parallel_dl.cost.stages import cut_stages
from parallel_dl.datasets import Batch, Share
from parallel_dl.equivalence.rounding.own_rules import before_update, magnitudes_of
from parallel_dl.equivalence.rounding.samples import Random, compute_gradients, sums_of_magnitudes
from parallel_dl.equivalence.runs.record import Arrays, Experiment, Run, batches, optimizer_state
from parallel_dl.layout import Layout
from parallel_dl.trainer import Trainer


def weight_stashing(experiment: Experiment, layout: Layout, trainer: Trainer, run: Run, random: Random) -> None:
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
            run.losses.append(compute_gradients(trainer, alone, random))
            for name, parameter in network.named_parameters():
                parameter.data[...] = versions[-1][name]
            before_update(magnitudes)
            trainer.update()
            last = number == len(batch.microbatches) - 1
            run.gradients.append({})
            run.state.append(optimizer_state(trainer) if last else {})
            run.weights.append(trainer.state_dict() if last else {})
            if run.magnitudes is not None and measured is not None:
                loss, sums = measured
                run.magnitudes.append({"losses": {"": loss}, "gradients": {}, **magnitudes.update(sums)})

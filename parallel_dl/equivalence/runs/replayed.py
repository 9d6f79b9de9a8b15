"""Serial programs for layouts that compute something other than one update with the whole batch.

They make the same updates in the same order, and know nothing of ranks: weight_stashing (the schedule "pipedream"),
variable_batch, and local_norm, for replicas with local batch norm. Each can be run with its sums over samples in
another order, too: the difference is its noise floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.equivalence.compare.runs import compare, measured_noise, samples_are_mixed
from parallel_dl.equivalence.rounding.last_bits import round_otherwise
from parallel_dl.equivalence.rounding.own_rules import may_take_signs
from parallel_dl.equivalence.runs.local_norm import local_norm
from parallel_dl.equivalence.runs.outcome import outcome_of
from parallel_dl.equivalence.runs.record import (
    Experiment,
    Run,
    batches,
    optimizer_state,
    start,
)
from parallel_dl.equivalence.runs.reference import Reference
from parallel_dl.equivalence.runs.variable_batch import variable_batch
from parallel_dl.equivalence.runs.weight_stashing import weight_stashing
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh, one_rank


def program_of(network: nn.Module, layout: Layout) -> str | None:
    """The name of the serial program that this layout is compared with; None: one update with the whole batch.

    InputError for a network and a layout that have none.
    """
    statistics = {module.statistics for _, module in network.named_modules() if isinstance(module, nn.BatchNorm)}
    local = "local" in statistics and layout.dp > 1
    if layout.is_asynchronous:
        if local:
            raise InputError(f"`schedule` {layout.schedule_name}: cannot be compared with local batch norm; use 1f1b")
        return "weight stashing"
    if layout.variable_batch:
        if statistics:
            raise InputError(
                "`variable_batch`: cannot be compared for networks with batch norm; use a network without it"
            )
        return "variable batch"
    if local and statistics != {"local"}:
        raise InputError("batch norm with both local and global statistics: use only one of the two in a network")
    return "local batch norm" if local else None


def replayed(experiment: Experiment, layout: Layout, seed: int | None = None, moved: int | None = None) -> Run:
    """The run of `program_of` for this layout, with magnitudes.

    With a seed its sums over samples are in a random order; with `moved`, another seed, it has other last bits. Then it
    has no magnitudes.
    """
    program = program_of(experiment.build(), layout)
    assert program is not None
    make = {"weight stashing": weight_stashing, "variable batch": variable_batch, "local batch norm": local_norm}
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
            run.state.append(optimizer_state(trainer) if last else {})
            run.weights.append(trainer.state_dict() if last else {})
    bits = np.array(run.losses).tobytes()  # what is not a number is not equal to itself
    ends = mesh.world.all_gather_object((bits, trainer.weights_sha256()))
    run.replicas_equal = all(end == ends[0] for end in ends)
    run.outcome = outcome_of(trainer, experiment.x, experiment.y)
    trainer.free()
    return run

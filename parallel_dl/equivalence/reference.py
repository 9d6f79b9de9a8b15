"""The serial run that layouts are held against, and whether it says what a layout should do.

It runs as if there were no other rank, with as many microbatches as the layout: so a network that treats each sample by
itself, and batch norm, whose statistics are those of a microbatch, compute the same. But a loss that divides by the
size of its microbatch does so on both sides. With microbatches the run is therefore compared with two more serial ones:
of one microbatch (without batch norm), and of the samples one by one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from parallel_dl.equivalence.batches import wrong_batches
from parallel_dl.equivalence.compare import BOUNDS, Comparison, Difference, compare
from parallel_dl.equivalence.record import Experiment, Run, record
from parallel_dl.equivalence.replay import noise_floor
from parallel_dl.layout import Layout
from parallel_dl.mpi import one_rank
from parallel_dl.nn import BatchNorm

NO_NOISE = 1e-3  # an error that the sums of float32 do not have at the first step


@dataclasses.dataclass(frozen=True)
class Reference:
    """A serial run, how far another order of summation moves it, and whether it depends on how the batch is cut."""

    run: Run
    noise: float | None
    one_microbatch: Run | None = None
    """None where it would be the same run, or another computation: with batch norm"""
    has_batch_norm: bool = False


def reference_of(
    experiment: Experiment, microbatches: int, exact: bool = False, one_microbatch: Run | None = None
) -> Reference:
    """Runs the experiment serially; `one_microbatch` is the run of one microbatch, if there is one already."""
    with one_rank():
        run = record(experiment, Layout(microbatches=microbatches))
        has_batch_norm = any(isinstance(layer, BatchNorm) for _, layer in experiment.build().named_modules())
        if microbatches == 1 or has_batch_norm:
            one_microbatch = None
        elif one_microbatch is None:
            one_microbatch = record(experiment, Layout())
        noise = None if exact else noise_floor(experiment, run, microbatches)
    return Reference(run, noise, one_microbatch, has_batch_norm)


def held_against(
    reference: Reference,
    experiment: Experiment,
    layout: Layout,
    parallel: Run,
    exact: bool = False,
    bound: float | None = None,
) -> Comparison:
    """The comparison, whose bound is above the noise; and the batches, and the serial run itself, looked at.

    In float32 the bound is at least ten times the noise floor. In float64 noise that comes near the bound means that
    the serial run is not the sum of its samples: with microbatches both sides may be wrong in the same way.
    """
    if bound is None and reference.noise is not None and experiment.dtype == "float32":
        bound = max(BOUNDS["float32"], 10 * min(reference.noise, NO_NOISE))
    comparison = compare(reference.run, parallel, bound, exact)
    if not comparison.equal:
        return comparison
    wrong = None if layout.reproducible else wrong_batches(experiment, layout)
    if wrong is not None:
        return _different(comparison, Difference(f"batches: {wrong}", 0, np.inf), f"batches: {wrong}")
    if layout.microbatches > 1:  # replicas alone have cut the batch in the comparison itself
        return _of_the_serial_run(reference, experiment, layout, comparison, bound, exact)
    return comparison


def _of_the_serial_run(
    reference: Reference,
    experiment: Experiment,
    layout: Layout,
    comparison: Comparison,
    bound: float | None,
    exact: bool,
) -> Comparison:
    """The comparison, or that the serial run depends on where the batch is cut."""
    what, worst = None, comparison.worst
    if reference.one_microbatch is not None:
        of_one = compare(reference.one_microbatch, reference.run, bound, exact)
        if not of_one.equal:
            worst = of_one.worst
            what = f"{layout.microbatches} microbatches and 1 differ in {worst.quantity} at step {worst.step}"
    limit = comparison.bound / 10 if experiment.dtype == "float64" else NO_NOISE
    if what is None and reference.noise is not None and not reference.noise <= limit:
        worst = Difference("the sum of its samples", 0, reference.noise)
        what = "samples that are passed one by one do not add up to it"
    if what is None:
        return comparison
    words = f"the serial run, which is not the sum of its samples: {what}, by {worst.error:.2e}. {_ADVICE}"
    if reference.has_batch_norm:
        words += f". {_ONLY_SO_MANY.format(layout.microbatches)}"
    quantity = "the serial run, which is not the sum of its samples,"
    return _different(comparison, Difference(quantity, worst.step, worst.error), words)


def _different(comparison: Comparison, worst: Difference, words: str) -> Comparison:
    return dataclasses.replace(comparison, equal=False, worst=worst, message=f"DIFFERENT: {words}")


_ADVICE = (
    "A loss divides by `total`, not by what it is given; a layer does not look at which samples there are, or how many"
)
_ONLY_SO_MANY = (
    "With nn.BatchNorm, which is defined over the microbatch, {} microbatches are compared with the samples, not with 1"
)

"""The serial run that layouts are compared with, and whether it can tell what a layout should compute.

It runs as if there were no other rank, with as many microbatches as the layout: so a network that treats each sample by
itself, and batch norm, whose statistics are those of a microbatch, compute the same. But a loss that divides by the
size of its microbatch does so on both sides. With several microbatches the run is therefore compared with two more
serial ones: of one microbatch (unless there is batch norm), and of the samples one by one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from parallel_dl.equivalence.checks.batches import wrong_batches
from parallel_dl.equivalence.compare.runs import (
    Comparison,
    Difference,
    compare,
    first_difference,
    samples_are_mixed,
)
from parallel_dl.equivalence.runs.record import Experiment, Run, record
from parallel_dl.equivalence.runs.replay import replay
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh, one_rank
from parallel_dl.nn import BatchNorm


@dataclasses.dataclass(frozen=True)
class Reference:
    """A serial run, how far another order of summation moves it, and whether it depends on how the batch is cut."""

    run: Run
    noise: float | None
    bound: float | None
    """that of `compare`: None for the usual one"""
    mixed: Difference | None = None
    """where it is not the sum of its samples, nor of its microbatches"""
    mixed_how: str = ""
    """what else gives another value there"""
    bits: Run | None = None
    """for a reproducible layout: the run of one rank under such a layout, to which it has to be equal bit by bit"""


def reference_of(
    experiment: Experiment,
    microbatches: int,
    exact: bool = False,
    one_microbatch: Run | None = None,
    bound: float | None = None,
) -> Reference:
    """Runs the experiment serially; `one_microbatch` is the run of one microbatch, if there is one already.

    `bound` is that of `compare`.
    """
    noise, mixed, how = None, None, "with its samples one by one"
    with one_rank():
        run = record(experiment, Layout(microbatches=microbatches))
        has_batch_norm = any(isinstance(layer, BatchNorm) for _, layer in experiment.build().named_modules())
        if not exact:
            evaluate = run.outcome is not None and run.outcome.note is None
            by_samples = replay(experiment, microbatches, evaluate=evaluate)
            noise, mixed = compare(run, by_samples).worst.error, samples_are_mixed(run, by_samples)
        if microbatches > 1 and not has_batch_norm:
            one = one_microbatch or record(experiment, Layout())
            other = first_difference(one, run, bound, exact, buffers=False)  # one may count calls
            if other is not None:
                mixed, how = other, "with 1 microbatch"
    if has_batch_norm:
        how += f" ({_ONLY_SO_MANY.format(microbatches)})"
    return Reference(run, noise, bound, mixed, how)


def with_bits(reference: Reference, experiment: Experiment, microbatches: int) -> Reference:
    """The reference for reproducible layouts. Magnitudes are those of the serial run."""
    with one_rank():
        run = record(experiment, Layout(microbatches=microbatches, reproducible=True), Mesh.serial())
    return dataclasses.replace(reference, bits=dataclasses.replace(run, magnitudes=reference.run.magnitudes))


def held_against(
    reference: Reference, experiment: Experiment, layout: Layout, parallel: Run, exact: bool = False
) -> Comparison:
    """The comparison, which also fails for wrong bits or batches and, with several microbatches, a wrong serial run."""
    comparison = compare(reference.run, parallel, reference.bound, exact)
    if not comparison.equal:
        return comparison
    other = None if reference.bits is None else first_difference(reference.bits, parallel, exact=True)
    if other is not None:
        words = f"{other.quantity} at step {other.step} does not have the bits of one rank with --reproducible"
        named = f"bits: {other.quantity} is equal only within the bound,"
        return _different(comparison, dataclasses.replace(other, quantity=named), words)
    wrong = None if layout.reproducible else wrong_batches(experiment, layout)
    if wrong is not None:
        return _different(comparison, Difference(f"batches: {wrong}", 0, np.inf), f"batches: {wrong}")
    worst = reference.mixed
    if layout.microbatches == 1 or worst is None:  # replicas alone have cut the batch in the comparison itself
        return comparison
    words = (
        f"the serial run is not the sum of its samples: {worst.quantity} at step {worst.step} differs "
        f"{reference.mixed_how}, by {worst.error:.2e}. {_ADVICE}"
    )
    named = f"the serial run, which is not the sum of its samples: {worst.quantity},"
    return _different(comparison, dataclasses.replace(worst, quantity=named), words)


def _different(comparison: Comparison, worst: Difference, words: str) -> Comparison:
    return dataclasses.replace(comparison, equal=False, worst=worst, message=f"DIFFERENT: {words}")


_ADVICE = (
    "A loss must divide by `total`, not by the number of samples that it is given, and scale a term that does not come "
    "from samples, such as a penalty on weights, by len(targets) / total; a layer must not depend on which samples "
    "there are, or how many"
)
_ONLY_SO_MANY = "with nn.BatchNorm, which is defined over the microbatch, {} microbatches are not compared with 1"

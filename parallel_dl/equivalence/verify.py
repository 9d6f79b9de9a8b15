"""Layouts one after the other on the ranks of one MPI job, each against the serial run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from parallel_dl import nn, optim
from parallel_dl.autograd import abandon
from parallel_dl.equivalence.assertions import in_words
from parallel_dl.equivalence.checks.counted import wrong_count
from parallel_dl.equivalence.checks.fitted import wrong_fit
from parallel_dl.equivalence.checks.movements import wrong_movement
from parallel_dl.equivalence.compare.runs import BOUNDS, Comparison, Difference
from parallel_dl.equivalence.explain.divergence import Divergence, first_divergence
from parallel_dl.equivalence.explain.raced import race_in, told
from parallel_dl.equivalence.runs.kept import Kept, key_of
from parallel_dl.equivalence.runs.record import Experiment, record
from parallel_dl.equivalence.runs.reference import Reference, held_against, reference_of, with_bits
from parallel_dl.equivalence.runs.replayed import program_of, record_updates, reference_of_program
from parallel_dl.errors import bounded
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Ledger, Mesh, stress
from parallel_dl.nn import Module

BUCKETS = {"method": "mpi", "overlap": True, "bucket_bytes": 256}  # some layers each
CHECKED_UP_TO = 4  # ranks: in checked mode, counted by a ledger
EVERY = 3  # one layout in three is checked so, and one in three is also trained by `fit`
SHORT = 8  # samples in the third batch of synthetic data: two in each of four microbatches, as batch norm needs


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network under one layout."""

    network: str
    layout: dict[str, Any]
    """as `Layout.as_dict`"""
    ranks: int
    equal: bool
    worst: dict[str, Any]
    """quantity, step, error, bound: the largest error, relative to the sum of the magnitudes that were added"""
    seconds: float
    """of the parallel run, wall-clock"""
    noise: float | None
    """largest error of a serial run whose sums over samples are in another order; None with exact equality"""
    divergence: dict[str, Any] | None
    """where a different run leaves the serial one: `Divergence`, and `text`"""
    dtype: str = "float64"
    note: str = ""
    """which steps and quantities were not compared, as rounding alone moves them as far, or why nothing could be"""


def synthetic_experiment(
    build: Callable[[], Module],
    input_shape: Sequence[int],
    classes: int,
    batch_size: int = 13,
    steps: int = 5,
    seed: int = 0,
    dtype: str = "float64",
    make_optimizer: Callable[[Any], optim.Optimizer] | None = None,
    loss: Callable[..., Any] = nn.cross_entropy,
    data: tuple[np.ndarray, np.ndarray] | None = None,
    clip_norm: float | None = None,
) -> Experiment:
    """Normally distributed samples (*input_shape), with labels below `classes`, from the seed; or those of `data`."""
    if data is None:
        random = np.random.default_rng(seed)
        samples = 2 * batch_size + min(SHORT, batch_size)
        data = random.standard_normal((samples, *input_shape)), random.integers(0, classes, samples)
    x, y = data
    return Experiment(
        build,
        x.astype(dtype),
        y,
        make_optimizer or (lambda parameters: optim.SGD(parameters, 0.05, momentum=0.9)),
        batch_size,
        steps,
        seed,
        dtype,
        loss,
        clip_norm=clip_norm,
    )


class CellFailed(Exception):
    """A layout of a network ended with an error on this rank: its cell says so. Others may wait for this rank."""

    def __init__(self, network: str, layout: Layout, dtype: str, rank: int, error: Exception) -> None:
        what = bounded(f"{type(error).__name__}: {error}")
        super().__init__(f"{network}, {in_words(layout)}: {what}")
        worst = {"quantity": f"the run, which ends on rank {rank} with {what},", "step": 0, "error": np.inf}
        bound = {"bound": BOUNDS[dtype]}
        self.cell = Cell(network, layout.as_dict(), layout.ranks, False, worst | bound, 0.0, None, None, dtype)

    def as_cell(self) -> dict[str, Any]:
        """The cell as a dictionary."""
        return dataclasses.asdict(self.cell)


def verify(
    comm: Communicator,
    experiments: dict[str, Experiment],
    layouts: Iterable[tuple[str, Layout]],
    exact: bool = False,
    folder: str | None = None,
    first: int = 0,
) -> Iterator[Cell | None]:
    """Runs each (name of an experiment, layout of comm.size ranks), and compares it with the serial run.

    Gives a Cell on rank 0, None on the others, which have to follow. A serial run is made once for each experiment and
    number of microbatches, by rank 0, or taken from the `folder` that an earlier job has kept it in. All ranks call it
    together. `first` is the number of the first layout, which goes on in turn with the kinds of checks.

    If one ends with an error, that is its Cell on a rank alone; of several, CellFailed on the ranks where it does.
    """
    kept = Kept(folder)
    checked = _checked(comm)
    for number, (name, layout) in enumerate(layouts, first):
        ranks = checked if number % EVERY == 1 else comm
        try:
            cell = _in_turn(ranks, name, experiments[name], layout, exact, kept, fit=number % EVERY == 2)
        except Exception as error:
            failed = CellFailed(name, layout, experiments[name].dtype, comm.rank, error)
            if comm.size > 1:
                raise failed from error
            abandon()  # the forward pass that it ended in
            cell = failed.cell
        yield cell


def _in_turn(
    comm: Communicator, name: str, experiment: Experiment, layout: Layout, exact: bool, kept: Kept, fit: bool
) -> Cell | None:
    reference = None
    if comm.rank == 0:
        key = key_of(name, experiment.build(), layout)
        with np.errstate(over="ignore", invalid="ignore"):  # training that diverges is told in the cell
            reference = kept.get(key, lambda: _reference(name, experiment, layout, exact, kept))
    mesh = Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp)
    with nullcontext() if comm.ledger is None else comm.ledger.counting():
        cell = verify_one(name, experiment, layout, mesh, reference, exact, fit)
    mesh.free()
    return cell


def _reference(name: str, experiment: Experiment, layout: Layout, exact: bool, kept: Kept) -> Reference:
    if program_of(experiment.build(), layout) is not None:
        return reference_of_program(experiment, layout)
    if layout.reproducible:
        plain = dataclasses.replace(layout, reproducible=False)
        return with_bits(
            kept.get((name, None, layout.microbatches), lambda: _reference(name, experiment, plain, exact, kept)),
            experiment,
            layout.microbatches,
        )
    one = None
    has_batch_norm = any(isinstance(layer, nn.BatchNorm) for _, layer in experiment.build().named_modules())
    if layout.microbatches > 1 and not has_batch_norm:
        one = kept.get((name, None, 1), lambda: reference_of(experiment, 1, exact)).run
    return reference_of(experiment, layout.microbatches, exact, one)


def _checked(comm: Communicator) -> Communicator:
    """The same ranks in checked mode, counted by a ledger, if there are few."""
    compares = 1 < comm.size <= CHECKED_UP_TO and not stress.collects()  # which stress would delay, too
    return Communicator(comm.mpi, checked=True, ledger=Ledger()) if compares else comm


def moved(comm: Communicator) -> Cell | None:
    """The movements between ranks, as a cell: rank 0's, None on the others. All ranks together."""
    start = time.perf_counter()
    ranks = _checked(comm)
    with nullcontext() if ranks.ledger is None else ranks.ledger.counting():
        wrong = wrong_movement(ranks)
    if comm.rank:
        return None
    worst = {"quantity": wrong or "nothing", "step": 0, "error": 0.0 if wrong is None else np.inf, "bound": 1e-10}
    seconds = time.perf_counter() - start
    return Cell("movements", Layout(dp=comm.size).as_dict(), comm.size, wrong is None, worst, seconds, None, None)


def verify_one(
    name: str,
    experiment: Experiment,
    layout: Layout,
    mesh: Mesh,
    reference: Reference | None,
    exact: bool = False,
    fit: bool = False,
) -> Cell | None:
    """One layout on the ranks of `mesh`; `reference` is needed on rank 0, which gets the Cell.

    With `fit` it is also trained by `Trainer.fit`.
    """
    comparisons: list[Comparison] = []
    only_data = layout.dp == layout.ranks > 1 and layout.hybrid is None and not layout.reproducible
    # gradients through shared memory, through MPI, and in buckets that leave during backward
    methods: tuple[str | Mapping[str, Any], ...] = ("auto", "mpi", BUCKETS) if only_data else ("auto",)
    if only_data and experiment.changes is not None and layout.dp & (layout.dp - 1) == 0:
        methods += ("tree",)  # what a change means for the gradients, each of them has to see
    asynchronous = layout.is_asynchronous
    for allreduce in methods:
        mesh.world.barrier()
        start = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):
            parallel = (record_updates if asynchronous else record)(experiment, layout, mesh, allreduce)
        seconds = time.perf_counter() - start
        race = race_in(parallel, mesh.world)
        if reference is not None:
            comparison = held_against(reference, experiment, layout, parallel, exact)
            comparisons.append(comparison if race is None else told(comparison, race))
        equal = mesh.world.broadcast_object(comparisons[-1].equal if comparisons else None)
        if not equal:
            break
    found: Divergence | None = None
    if not equal and race is None and program_of(experiment.build(), layout) is None:
        serial = None if reference is None else reference.run
        found = first_divergence(experiment, layout, mesh, serial, parallel, exact, allreduce=allreduce)
    wrong = wrong_count(experiment, layout, mesh) if equal else None
    if equal and wrong is None and fit:
        with np.errstate(over="ignore", invalid="ignore"):
            wrong = wrong_fit(experiment, layout, mesh, parallel)
    if wrong is not None:
        equal, worst_of_all = False, Difference(wrong, 0, np.inf)
        comparisons = [dataclasses.replace(one, worst=worst_of_all, equal=False) for one in comparisons]
    if reference is None:
        return None
    comparison = max(comparisons, key=lambda one: (not one.equal, one.worst.error))
    worst = {**dataclasses.asdict(comparison.worst), "bound": comparison.bound}
    divergence = None if found is None else {**dataclasses.asdict(found), "text": str(found)}
    noise, note = reference.noise, comparison.note
    return Cell(name, layout.as_dict(), layout.ranks, equal, worst, seconds, noise, divergence, experiment.dtype, note)


__all__ = ["Cell", "moved", "synthetic_experiment", "verify", "verify_one"]

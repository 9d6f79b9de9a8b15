"""Plants bugs, and says of each whether the proof has caught it and the report named it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from parallel_dl.autograd import abandon
from parallel_dl.equivalence.compare.runs import compare
from parallel_dl.equivalence.explain.divergence import first_divergence
from parallel_dl.equivalence.explain.raced import race_in, told
from parallel_dl.equivalence.explain.trace import Trace, trace
from parallel_dl.equivalence.mutants.mutant import Mutant, planted
from parallel_dl.equivalence.mutants.networks import experiments
from parallel_dl.equivalence.runs.record import Experiment, record
from parallel_dl.equivalence.runs.reference import Reference, reference_of
from parallel_dl.equivalence.verify import verify_one
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Mesh, stress


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    name: str
    caught: bool
    named: bool
    """whether the diagnosis says what it is"""
    diagnosis: str
    error: float | None
    """the largest, relative to the sum of magnitudes; None when the ranks were refused"""


def verdicts(comm: Communicator, mutants: Iterable[Mutant]) -> Iterator[Verdict | None]:
    """Plants each mutant on the 2 ranks of `comm`, all together; a Verdict on rank 0, None on the other."""
    what = experiments()
    checked: Communicator | None = comm if comm.checked else None
    references: dict[tuple[str, int], tuple[Reference, dict[int, Trace]]] = {}
    right: dict[tuple[str, str, bool], bool] = {}  # (network, layout, in checked mode) -> whether it is, without a bug
    for mutant in mutants:
        experiment, layout = what[mutant.network], mutant.layout
        if mutant.refused and checked is None:
            checked = Communicator(comm.mpi, checked=True, name=comm.name)
        ranks = checked if mutant.refused and checked is not None else comm
        key = mutant.network, layout.microbatches
        reference = None
        if comm.rank == 0:
            if key not in references:
                alone = Layout(microbatches=layout.microbatches)
                traces = {step: trace(experiment, alone, Mesh.serial(), step) for step in range(experiment.steps)}
                references[key] = reference_of(experiment, layout.microbatches), traces
            reference = references[key]
        kind = mutant.network, str(layout), mutant.refused
        if kind not in right:
            mesh = _mesh(ranks, layout)
            cell = verify_one(mutant.network, experiment, layout, mesh, reference and reference[0])
            right[kind] = comm.broadcast_object(cell is None or cell.equal)
            mesh.free()
        if not right[kind]:
            said = f"{mutant.network}, {layout}: different also without the bug"
            yield Verdict(mutant.name, False, False, said, None) if comm.rank == 0 else None
        elif mutant.refused:
            yield _refusal(ranks, mutant, experiment)
        else:
            yield _verdict(comm, mutant, experiment, reference)


def _mesh(comm: Communicator, layout: Layout) -> Mesh:
    return Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp)


def _verdict(
    comm: Communicator, mutant: Mutant, experiment: Experiment, reference: tuple[Reference, dict[int, Trace]] | None
) -> Verdict | None:
    layout = mutant.layout
    mesh = _mesh(comm, layout)
    serial, alone = (None, None) if reference is None else (reference[0].run, reference[1])
    with planted(mutant):
        parallel = record(experiment, layout, mesh)
        race = race_in(parallel, comm)
        comparison = None if serial is None else compare(serial, parallel)
        if comparison is not None and race is not None:
            comparison = told(comparison, race)
        caught = not comm.broadcast_object(None if comparison is None else comparison.equal)
        found = (
            first_divergence(experiment, layout, mesh, serial, parallel, alone=alone) if caught and not race else None
        )
    mesh.free()
    if comparison is None:
        return None
    diagnosis = str(found) if found is not None else comparison.message
    named = caught and bool(mutant.says) and any(phrase in diagnosis for phrase in mutant.says)
    return Verdict(mutant.name, caught, named, diagnosis, comparison.worst.error)


def _refusal(comm: Communicator, mutant: Mutant, experiment: Experiment) -> Verdict | None:
    """Of a bug that is refused, on all ranks: one that went on would wait for the others.

    Gradients go through MPI: a shared window would be left behind, as nobody frees what a refused program had.
    """
    mesh, said = _mesh(comm, mutant.layout), None
    with planted(mutant):
        try:
            record(experiment, mutant.layout, mesh, "mpi")
        except (InputError, RuntimeError) as error:  # of which CollectiveMismatch is one
            said = f"{type(error).__name__}: {error}"
    abandon()  # the forward pass that was refused
    mesh.free()
    if stress.collects():
        stress.races(comm)  # what was under way then is none
    of_ranks = comm.all_gather_object(said)
    if comm.rank:
        return None
    diagnosis = next((one for one in of_ranks if one is not None), "nothing was refused")
    caught = None not in of_ranks
    return Verdict(mutant.name, caught, caught and any(phrase in diagnosis for phrase in mutant.says), diagnosis, None)


def noise_of_mutants(comm: Communicator) -> float:
    """The noise floor of what mutants are planted in, computed by rank 0, on all ranks."""
    floors = [0.0]
    if comm.rank == 0:
        floors = [reference_of(experiment, 2).noise or 0.0 for experiment in experiments().values()]
    return comm.broadcast_object(max(floors))

"""`parallel-dl train`: a network, a data set and a layout; one rank in this process, more by mpirun."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from parallel_dl import launch
from parallel_dl.cli.flags import AsJson, LayoutFlags, NetworkName, TrainingFlags, taking_flags
from parallel_dl.cli.layout import flags_of_ranks, in_words_of, layout_of
from parallel_dl.cli.limits import of_ranks
from parallel_dl.cli.terminal import for_ranks
from parallel_dl.cli.train_report import print_result
from parallel_dl.cli.training import Job
from parallel_dl.errors import InputError, number_of

if TYPE_CHECKING:
    from parallel_dl.datasets import Dataset
    from parallel_dl.layout import Layout
    from parallel_dl.mpi import Communicator


@taking_flags
def train(
    context: typer.Context, network: NetworkName, layout: LayoutFlags, training: TrainingFlags, as_json: AsJson = False
) -> int:
    """Train a network on one or more ranks.

    It uses --dp x --mp x --pp ranks and starts them with mpirun, unless it already runs inside one.
    """
    job = Job(network, layout_of(layout), training, layout.layout_file)
    if launch.inside_mpirun():
        return _train_here(job, None, as_json)
    with in_words_of(job.layout_file):
        data = job.check()
    if job.layout.ranks == 1:
        return _train_here(job, data, as_json)
    with in_words_of(job.layout_file), of_ranks(flags_of_ranks(job.layout), job.layout.ranks):
        return launch.run(job.layout.ranks, ["-m", "parallel_dl", *context.obj], for_ranks())


def _train_here(job: Job, data: Dataset | None, as_json: bool) -> int:
    """This process is one rank: of an mpirun's, or the only one."""
    from parallel_dl.mpi import Ledger
    from parallel_dl.mpi.communicator import observed_world

    ledger = Ledger() if job.flags.ledger else None
    with observed_world(job.flags.checked or None, ledger) as comm:  # also for what the user's own layers send
        return _train_on(comm, job, data, as_json)


def _train_on(comm: Communicator, job: Job, data: Dataset | None, as_json: bool) -> int:
    from parallel_dl.cli.agreement import agreed

    def prepare() -> Dataset:
        with in_words_of(job.layout_file):
            _require_ranks(job.layout, comm.size)
            return job.check() if data is None else data

    dataset = agreed(comm, prepare)
    facts, result, method, state = job.train(comm, dataset)
    try:
        if comm.rank == 0:
            if as_json:
                print(json.dumps(facts), flush=True)
            else:
                print_result(facts, result, method, job.rounds_by_layout)
    finally:  # results first; if printing or writing fails, the other is still done
        if job.flags.output is not None:
            agreed(comm, lambda: job.save(state, facts))
    return 0


def _require_ranks(layout: Layout, started: int) -> None:
    """Refuses (InputError) an mpirun of another number of ranks than the layout's."""
    if layout.ranks == started:
        return
    if layout.hybrid:
        raise InputError(f"mpirun started {started}; use `ranks` {started}", "ranks", layout.dp)
    mp, pp = layout.mp, layout.pp
    divisors = " or ".join(str(n) for n in range(1, started + 1) if started % n == 0)
    valid = f"`{'pp' if pp > 1 else 'mp'}` {divisors}"
    if started % (mp * pp) == 0:
        valid = f"`dp` {started // (mp * pp)}"
    elif mp > 1 and pp > 1:
        valid = f"`dp`, `mp` and `pp` whose product is {started}"
    needs = f"{flags_of_ranks(layout)}: needs {number_of(layout.ranks, 'rank')}"
    raise InputError(f"{needs}, but mpirun started {started}; use {valid}")

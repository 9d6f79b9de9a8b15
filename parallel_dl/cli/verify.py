"""`parallel-dl verify`: runs a layout and the serial program and compares them; known bugs must make them differ."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli.flags import AsJson, VerifyFlags, VerifyLayoutFlags, taking_flags
from parallel_dl.cli.given import is_given, require_only
from parallel_dl.cli.layout import flags_of_ranks, layout_of
from parallel_dl.cli.limits import flag_of, of_ranks
from parallel_dl.cli.terminal import for_ranks
from parallel_dl.cli.verification import FOLDER, Job
from parallel_dl.cli.verified import Verified
from parallel_dl.cli.verify_report import report
from parallel_dl.errors import InputError, cut, named
from parallel_dl.launch.tracebacks import CHECKED_VARIABLE as CHECKED

if TYPE_CHECKING:
    from parallel_dl.layout import Layout

RANKS = (1, 2, 3, 4, 5, 6, 7, 8)
# the parameters that --mutants, --all and --ranks use; others would be ignored, so they are refused
_TAKEN_BY_MUTANTS = {"checked", "stress", "seed", "time_limit", "as_json", "to_launcher"}
_TAKEN_BY_ALL = {
    *_TAKEN_BY_MUTANTS,
    *("everything", "exact", "steps", "batch_size", "optimizer", "loss", "clip_norm", "dtype", "microbatches"),
    *("dataset", "data_dir"),
}
_TAKEN_BY_RANKS = {*_TAKEN_BY_ALL, "network", "ranks"}
_REPLACED_BY_EXACT = ("steps", "optimizer", "loss", "clip_norm", "dataset")
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@taking_flags
def verify(
    context: typer.Context,
    *,
    network: Annotated[
        str | None,
        typer.Argument(help="{networks}, {specimens}, or FILE.py:NAME; not with --all or --mutants."),
    ] = None,
    layout: VerifyLayoutFlags,
    what: VerifyFlags,
    as_json: AsJson = False,
    to_launcher: Annotated[bool, typer.Option("--to-launcher", hidden=True)] = False,
) -> int:
    """Verify that a parallel layout computes what the serial program computes.

    It compares losses, gradients, optimizer state and weights after every update. If they differ, it names the first
    tensor that does and exits with status 1.
    """
    _require_together(context, network, what)
    job = _job(context, network, layout, what)
    if launch.inside_mpirun():
        return _inside(job, to_launcher, as_json)
    job.check()
    found: list[dict[str, Any]] = []
    with _folder() if job.layout is None and not job.mutants else nullcontext():
        for number in job.ranks:
            found.append(_start(job, number, context.obj))
    seed = what.seed if what.stress else None
    if what.everything:  # how far the noise is from the smallest known bug
        flags = ["--time-limit", str(what.time_limit), *([] if seed is None else ["--stress", "--seed", str(seed)])]
        found.append(_start(dataclasses.replace(job, mutants=True), 2, ["verify", "--mutants", *flags]))
    return report(found, as_json, seed, what.dtype)


def _require_together(context: typer.Context, network: str | None, what: VerifyFlags) -> None:
    """Refuses flags that another one would ignore."""
    planted = _planted(what)
    if what.everything:
        require_only(context, _TAKEN_BY_ALL, "--all")
    elif planted is not None:
        if not what.stress and is_given(context, "seed"):
            raise InputError(f"--seed: cannot be combined with {planted} unless --stress is given: it seeds the delays")
        require_only(context, {*_TAKEN_BY_MUTANTS, "mutants" if what.mutants else "mutant"}, planted)
    elif network is None:
        raise InputError("NETWORK is missing: give one, or --all or --mutants")
    if what.data_dir is not None and what.dataset is None:
        raise InputError(f"--data-dir {named(what.data_dir)}: needs --dataset")
    for name in _REPLACED_BY_EXACT if what.exact else ():
        if (value := getattr(what, name)) is not None:
            raise InputError(
                "cannot be combined with `exact`, which makes one step of SGD on whole numbers", name, cut(str(value))
            )


def _planted(what: VerifyFlags) -> str | None:
    """The flag that plants bugs, if there is one."""
    return "--mutants" if what.mutants else "--mutant" if what.mutant is not None else None


def _job(context: typer.Context, network: str | None, flags: VerifyLayoutFlags, what: VerifyFlags) -> Job:
    planted = _planted(what) is not None
    layout: Layout | None = None
    if not what.everything and not planted:
        if flags.ranks is not None and flags.hybrid is None:
            require_only(context, _TAKEN_BY_RANKS, "--ranks, which verifies every layout; use only one of the two")
        else:
            layout = layout_of(flags)
    ranks = [2] if planted else [layout.ranks if layout else int(flags.ranks or 0)]
    if what.everything:
        ranks = list(RANKS)
    job = Job([network] if network else _small_networks(), layout, ranks, what, flags.microbatches, planted)
    if what.everything and what.exact:
        job.networks = [name for name in job.networks if _is_exact(job, name)]
    return job


@contextmanager
def _folder() -> Iterator[None]:
    """Inside, jobs keep serial runs for each other, and what they have found."""
    with tempfile.TemporaryDirectory(prefix="pdl-verify-") as folder:
        os.environ[FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER]


def _small_networks() -> list[str]:
    from parallel_dl.equivalence.specimens.networks import SPECIMENS
    from parallel_dl.networks import NETWORKS

    return [name for name, shipped in NETWORKS.items() if shipped.input_shape is None] + list(SPECIMENS)


def _is_exact(job: Job, name: str) -> bool:
    try:
        job.experiment(name)
    except InputError:
        return False
    return True


def _start(job: Job, ranks: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs a job on this many ranks of its own; returns what rank 0 found."""
    if ranks == 1:
        from parallel_dl.mpi import one_blas_thread, world

        one_blas_thread()
        return job.run(world())
    program = ["-m", "parallel_dl", *arguments, "--to-launcher"]
    while True:
        found: list[bytes] = []
        with of_ranks(flags_of_ranks(job.layout) if job.layout else f"{flag_of('ranks')} {ranks}", ranks):
            checked = {CHECKED: "1"} if job.flags.checked else {}
            status = launch.run(ranks, program, {**_ONE_THREAD, **for_ranks(), **checked}, found)
        if not status:
            return json.loads(b"".join(found))
        if job.mutants or not Verified(os.environ.get(FOLDER), ranks).go_on():
            raise SystemExit(status)


def _inside(job: Job, to_launcher: bool, as_json: bool) -> int:
    """These are the ranks of an mpirun: ours, whose launcher wants the findings as objects, or the user's own."""
    from parallel_dl.cli.agreement import agreed
    from parallel_dl.mpi import world

    if job.flags.checked:
        os.environ[CHECKED] = "1"  # what communicators are made with, also those of layouts
    comm = world()

    def prepare() -> bool:
        if comm.size not in job.ranks:
            valid = " or ".join(map(str, job.ranks))
            raise InputError(f"needs {valid} {'rank' if valid == '1' else 'ranks'}, but mpirun started {comm.size}")
        if not to_launcher:
            job.check()
        return True

    agreed(comm, prepare)
    found = job.run(comm)
    if comm.rank:
        return 0
    if to_launcher:
        print(json.dumps(found))
        return 0
    return report([found], as_json, job.flags.seed if job.flags.stress else None, job.flags.dtype)

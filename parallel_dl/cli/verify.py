"""`parallel-dl verify`: a layout computes what the serial program does, shown by running both; known bugs do not."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli.given import is_given, require_only
from parallel_dl.cli.layout import (
    Chunks,
    Dp,
    Hybrid,
    LayoutFile,
    Mp,
    Pp,
    Reproducible,
    Schedule,
    Scheme,
    Split,
    Stage,
    VariableBatch,
    flags_of_ranks,
    layout_of,
    require_fits,
)
from parallel_dl.cli.limits import of_ranks, require_count
from parallel_dl.cli.terminal import console, for_ranks
from parallel_dl.cli.time_limit import MOST_SECONDS, TIME_LIMIT, TimeLimit
from parallel_dl.cli.verify_report import layout_text, report
from parallel_dl.errors import InputError, cut, named, number_of, unknown_name
from parallel_dl.files import require_memory
from parallel_dl.launch.limits import MOST_RANKS
from parallel_dl.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from parallel_dl.equivalence import Experiment
    from parallel_dl.equivalence.mutants import Mutant
    from parallel_dl.mpi import Communicator
    from parallel_dl.nn import Module

FOLDER = "PARALLEL_DL_SERIAL_RUNS"  # names the folder in which jobs keep serial runs for each other
RANKS = (1, 2, 3, 4, 5, 6, 7, 8)
SHAPE, CLASSES = (2, 9, 8), 10  # of the synthetic data, for networks that take their input's: nothing is alike
MOST_SAMPLES, MOST_STEPS = 1 << 16, 10_000  # the serial run goes through its samples one by one, and keeps every step
OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
# the parameters that --mutants, --all and --ranks use; others would be ignored, so they are refused
_TAKEN_BY_MUTANTS = {"stress", "seed", "time_limit", "as_json", "to_launcher"}
_TAKEN_BY_ALL = {
    *_TAKEN_BY_MUTANTS,
    *("everything", "exact", "steps", "batch_size", "optimizer", "clip_norm", "dtype", "microbatches"),
    *("dataset", "data_dir"),
}
_TAKEN_BY_RANKS = {*_TAKEN_BY_ALL, "network", "ranks"}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclasses.dataclass
class Job:
    """What is to be verified: networks, and layouts on each number of ranks."""

    networks: list[str]
    layout: Layout | None
    ranks: list[int]
    exact: bool
    mutants: bool
    batch_size: int
    steps: int
    seed: int
    dtype: str
    optimizer: str
    clip_norm: float | None
    microbatches: int | None
    dataset: str | None
    data_dir: str | None
    mutant: str | None = None
    stress: bool = False
    time_limit: float = TIME_LIMIT
    everything: bool = False
    """a covering set of layouts, not all of them"""

    def check(self) -> None:
        """Refuses (InputError) what can be known to be wrong before a rank is started."""
        from parallel_dl.equivalence.runs.replayed import program_of
        from parallel_dl.equivalence.specimens.networks import require_known

        if self.mutant is not None:
            self._planted()
        if not 0 < self.time_limit <= MOST_SECONDS:
            raise InputError(f"--time-limit {self.time_limit:g}: must be above 0 and at most {MOST_SECONDS:g} seconds")
        if self.stress and self.ranks == [1]:
            raise InputError("--stress: one rank waits for nobody; valid are layouts of several ranks")
        for name in self.networks:
            require_known(name)
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("--optimizer", self.optimizer, OPTIMIZERS)
        if self.dtype not in ("float32", "float64"):
            raise unknown_name("--dtype", self.dtype, ("float32", "float64"))
        (self.layout or Layout()).require_clip_norm(self.clip_norm)
        if self.exact and self.dtype != "float64":
            raise InputError(f"--exact --dtype {self.dtype}: whole numbers up to 2^53 need float64")
        require_count("batch-size", self.batch_size, most=MOST_SAMPLES)
        require_count("steps", self.steps, most=MOST_STEPS)
        require_count(
            "microbatches", self.microbatches, most=max(self.batch_size, self.layout.pp if self.layout else 1)
        )
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: must be in 0..2**63-1")
        for ranks in self.ranks:
            if self.layout is None:
                require_count("ranks", ranks, most=MOST_RANKS)
            elif ranks > MOST_RANKS:
                flags = flags_of_ranks(self.layout)
                raise InputError(f"{flags}: needs {number_of(ranks, 'rank')}; valid are at most {MOST_RANKS}")
        for name in self.networks:
            what = self.experiment(name)
            if self.layout is None:
                continue
            program = program_of(what.build(), self.layout)
            if self.exact and program is not None:
                raise InputError(
                    f"--exact: takes one update with the whole batch; this layout is compared with {program}"
                )
            require_fits(what.build(), what.x.shape[1:], self.layout)
            if self.layout.ranks == 1 and not self.layout.is_pipelined and not self.layout.reproducible:
                raise InputError("the layout is one rank, the serial run itself; valid is one of several, or --ranks N")

    def _can_have(self, experiment: Experiment, layout: Layout) -> bool:
        """Whether a layout of --ranks or --all has the norms that were asked for."""
        try:
            layout.require_clip_norm(experiment.clip_norm)
        except InputError:
            return False
        return True

    def _planted(self) -> Sequence[Mutant]:
        """The bugs that are planted: races only under stress, which alone is sure to see them."""
        from parallel_dl.equivalence.mutants import MUTANTS, mutants_of
        from parallel_dl.equivalence.mutants.races import RACES

        if self.mutant is not None and not self.stress and any(race.name == self.mutant for race in RACES):
            raise InputError(f"--mutant {self.mutant!r}: is certain to be caught only with --stress")
        return mutants_of(self.mutant, (*MUTANTS, *RACES) if self.stress else MUTANTS)

    def experiment(self, name: str) -> Experiment:
        """What is computed with a network."""
        from parallel_dl import networks, optim
        from parallel_dl.cli.networks import network_for
        from parallel_dl.equivalence import exact_experiment, synthetic_experiment
        from parallel_dl.equivalence.specimens.networks import network_named
        from parallel_dl.equivalence.specimens.programs import PROGRAMS
        from parallel_dl.nn import cross_entropy, mse

        shipped = networks.NETWORKS.get(name)
        shape = SHAPE if shipped is None else shipped.input_shape or SHAPE
        classes = CLASSES if shipped is None else shipped.classes or CLASSES
        data = None
        loss: Callable[..., Any] = cross_entropy
        build: Callable[[], Module] = lambda: network_named(name, shape, classes)  # noqa: E731
        if self.dataset is not None:
            from parallel_dl import datasets

            found = datasets.load(self.dataset, self.data_dir, self.dtype).with_flat_targets()
            loss = cross_entropy if found.classes is not None else mse
            shape, data = found.input_shape, (found.x_train, found.y_train)
            if shipped is None:
                build = lambda: network_named(name, shape, found.outputs)  # noqa: E731
            else:
                build = lambda: network_for(name, found, self.dataset or "")  # noqa: E731
            build()
        if data is None:  # twice as many, drawn in float64 and copied
            require_memory(f"--batch-size {self.batch_size}", 32 * self.batch_size * math.prod(shape))
        if self.exact:
            return exact_experiment(build, shape, self.batch_size, self.seed)
        makers: dict[str, Callable[[Any], optim.Optimizer]] = {
            "sgd": lambda parameters: optim.SGD(parameters, 0.05, momentum=0.9),
            "adam": lambda parameters: optim.Adam(parameters, 1e-2),
            "adamw": lambda parameters: optim.AdamW(parameters, 1e-2),
            "lars": lambda parameters: optim.LARS(parameters, 1.0, weight_decay=1e-3),
        }
        experiment = synthetic_experiment(
            build,
            shape,
            classes,
            self.batch_size,
            self.steps,
            self.seed,
            self.dtype,
            makers[self.optimizer],
            loss,
            data,
            clip_norm=self.clip_norm,
        )
        return PROGRAMS[name].of(experiment) if name in PROGRAMS else experiment

    def variations(self) -> dict[str, Experiment]:
        """Those tried besides the usual ones; none if the optimizer, the samples or the type of numbers are chosen."""
        from parallel_dl.equivalence.specimens.variations import VARIATIONS

        usual = (self.optimizer, self.clip_norm, self.dtype, self.dataset) == ("sgd", None, "float64", None)
        if self.exact or not usual:
            return {}
        return {name: vary(self.experiment(network)) for name, (network, vary) in VARIATIONS.items()}

    def run(self, comm: Communicator) -> dict[str, Any]:
        """Verifies on the ranks of `comm`, all together; on rank 0 cells, or verdicts on mutants."""
        from parallel_dl.mpi.stress import stressed

        chosen = stressed(comm, self.seed) if self.stress and comm.size > 1 else nullcontext(comm)
        with chosen as ranks, TimeLimit(self.time_limit, comm) as limit:
            return self._run(ranks, limit)

    def _run(self, comm: Communicator, limit: TimeLimit) -> dict[str, Any]:
        from parallel_dl.equivalence import layouts_of, verify
        from parallel_dl.equivalence.mutants import noise_of_mutants, verdicts
        from parallel_dl.equivalence.runs.replayed import program_of
        from parallel_dl.equivalence.specimens.layouts import covering_set
        from parallel_dl.equivalence.specimens.variations import VARIATIONS
        from parallel_dl.equivalence.verify import moved

        if self.mutants:
            planted = self._planted()
            each = limit.each(
                planted, lambda mutant: f"{mutant.name!r} in {mutant.network}, {layout_text(mutant.layout.as_dict())}"
            )
            with _progress(len(planted), "mutants", comm.rank) as advance:
                found = [verdict for verdict in verdicts(comm, each) if advance() or verdict is not None]
            return {"mutants": [dataclasses.asdict(v) for v in found], "noise": noise_of_mutants(comm)}
        experiments = {name: self.experiment(name) for name in self.networks}
        if self.everything:
            experiments |= self.variations()
        networks = {name: (what.build(), what.x.shape[1:]) for name, what in experiments.items()}
        if self.everything:
            tasks = covering_set(comm.size, networks, self.microbatches, VARIATIONS)
        elif self.layout is not None:
            tasks = [(name, self.layout) for name in networks]
        else:
            tasks = [
                (name, layout)
                for name, (network, shape) in networks.items()
                for layout in layouts_of(comm.size, network, shape, self.microbatches)
            ]
        if self.layout is None:
            tasks = [(name, layout) for name, layout in tasks if self._can_have(experiments[name], layout)]
        if self.exact:
            tasks = [(name, layout) for name, layout in tasks if program_of(networks[name][0], layout) is None]
        with _progress(len(tasks), number_of(comm.size, "rank"), comm.rank) as advance:
            timed = limit.each(tasks, lambda task: f"{task[0]}, {layout_text(task[1].as_dict())}")
            verified = verify(comm, experiments, timed, self.exact, os.environ.get(FOLDER))
            cells = [cell for cell in verified if advance() or cell is not None]
        if self.everything and comm.size > 1:
            cells += [cell for cell in [moved(comm)] if cell is not None]
        return {"cells": [dataclasses.asdict(cell) for cell in cells]}


@contextmanager
def _progress(total: int, what: str, rank: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal's stderr, of rank 0; gives the function that moves it on."""
    screen = console(stderr=True) if rank == 0 else None
    if screen is None or not screen.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=screen) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def verify(
    context: typer.Context,
    network: Annotated[str | None, typer.Argument(help="Which network; not with --all or --mutants.")] = None,
    layout_file: LayoutFile = None,
    dp: Dp = None,
    mp: Mp = None,
    split: Split = None,
    pp: Pp = None,
    schedule: Schedule = None,
    stage: Stage = None,
    chunks: Chunks = None,
    microbatches: Annotated[int | None, typer.Option(help="Pieces of a batch. [default: --pp; 4 with --ranks]")] = None,
    hybrid: Hybrid = None,
    scheme: Scheme = None,
    variable_batch: VariableBatch = False,
    reproducible: Reproducible = False,
    ranks: Annotated[int | None, typer.Option(help="Every layout, and every schedule, of so many ranks.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="1 to 8 ranks, all small networks, every kind of layout.")
    ] = False,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Plant known bugs: is each of them caught, and named?")
    ] = False,
    mutant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Plant only this bug, by a name that --mutants shows.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Whole numbers: equal bit by bit.")] = False,
    steps: Annotated[int | None, typer.Option(help="Updates that are compared. [default: 5; 1 with --exact]")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples in the global batch. [default: 13; 16 with --exact]")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd (with momentum), adam, adamw or lars. [default: sgd]")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Clip gradients to this norm. [default: as they are]")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, samples, dropout, and delays under --stress.")] = 0,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    stress: Annotated[
        bool,
        typer.Option("--stress", help="Delay ranks around their calls, by the seed, and poison buffers: shows races."),
    ] = False,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for each layout; then each rank says where it waits, and all end.")
    ] = TIME_LIMIT,
    dataset: Annotated[str | None, typer.Option(help="A data set, as of train. [default: random samples]")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data set's files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    to_launcher: Annotated[bool, typer.Option("--to-launcher", hidden=True)] = False,
) -> int:
    """Show that a layout computes what the serial program computes: losses, gradients, optimizer state, weights.

    Exit status 1 when it does not, with the first tensor that differs.
    """
    planted = "--mutants" if mutants else "--mutant" if mutant is not None else None
    whole = "--all" if everything else planted
    if everything:
        require_only(context, _TAKEN_BY_ALL, "--all")
    elif planted is not None:
        if not stress and is_given(context, "seed"):
            raise InputError(f"--seed: does not go with {planted} without --stress, whose delays it chooses")
        require_only(context, {*_TAKEN_BY_MUTANTS, "mutants" if mutants else "mutant"}, planted)
    elif network is None:
        raise InputError("NETWORK is missing; or --all, or --mutants")
    if data_dir is not None and dataset is None:
        raise InputError(f"--data-dir {named(data_dir)}: belongs to --dataset, which is not given")
    inside = launch.inside_mpirun()
    layout = None
    if whole is None and ranks is not None and hybrid is None:
        require_only(context, _TAKEN_BY_RANKS, "--ranks, which takes every layout; valid is one of the two")
    elif whole is None:
        layout = layout_of(
            layout_file,
            dp=dp,
            mp=mp,
            split=split,
            pp=pp,
            schedule=schedule,
            stage=stage,
            chunks=chunks,
            microbatches=microbatches,
            hybrid=hybrid,
            ranks=ranks,
            scheme=scheme,
            variable_batch=variable_batch,
            reproducible=reproducible,
        )
    if exact:
        replaced = {"--steps": steps, "--optimizer": optimizer, "--clip-norm": clip_norm, "--dataset": dataset}
        for flag, value in replaced.items():
            if value is not None:
                raise InputError(
                    f"{flag} {cut(str(value))}: does not go with --exact, one step of SGD on whole numbers"
                )
    job = Job(
        [network] if network else _small_networks(),
        layout,
        list(RANKS) if everything else [2] if planted else [layout.ranks if layout else int(ranks or 0)],
        exact,
        planted is not None,
        (16 if exact else 13) if batch_size is None else batch_size,
        5 if steps is None else steps,
        seed,
        dtype,
        optimizer or "sgd",
        clip_norm,
        microbatches,
        dataset,
        data_dir,
        mutant,
        stress,
        time_limit,
        everything,
    )
    if everything and exact:
        job.networks = [name for name in job.networks if _is_exact(job, name)]
    if inside:
        return _inside(job, to_launcher, as_json)
    job.check()
    found: list[dict[str, Any]] = []
    with _folder() if everything else nullcontext():
        for number in job.ranks:
            found.append(_start(job, number, context.obj))
    if everything:  # how far the noise is from the smallest known bug
        flags = ["--time-limit", str(time_limit), *(["--stress", "--seed", str(seed)] if stress else [])]
        found.append(_start(dataclasses.replace(job, mutants=True), 2, ["verify", "--mutants", *flags]))
    return report(found, as_json, seed if stress else None, dtype)


@contextmanager
def _folder() -> Iterator[None]:
    """Inside, jobs keep serial runs for each other."""
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
    """Runs a job on so many ranks of its own; what rank 0 has found."""
    if ranks == 1:
        from parallel_dl.mpi import one_blas_thread, world

        one_blas_thread()
        return job.run(world())
    found: list[bytes] = []
    program = ["-m", "parallel_dl", *arguments, "--to-launcher"]
    with of_ranks(flags_of_ranks(job.layout) if job.layout else f"--ranks {ranks}", ranks):
        status = launch.run(ranks, program, {**_ONE_THREAD, **for_ranks()}, found)
    if status:
        raise SystemExit(status)
    return json.loads(b"".join(found))


def _inside(job: Job, to_launcher: bool, as_json: bool) -> int:
    """These are the ranks of an mpirun: ours, whose launcher wants the findings as objects, or the user's own."""
    from parallel_dl.cli.agreement import agreed
    from parallel_dl.mpi import world

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
    return report([found], as_json, job.seed if job.stress else None, job.dtype)

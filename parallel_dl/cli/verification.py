"""One `parallel-dl verify`: its refused flags, the experiments, and what their ranks find."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from parallel_dl import from_file
from parallel_dl.cli import losses, trial
from parallel_dl.cli.flags import VerifyFlags
from parallel_dl.cli.layout import flags_of_ranks, require_fits
from parallel_dl.cli.limits import require_count, require_seed
from parallel_dl.cli.report import progress
from parallel_dl.cli.time_limit import MOST_SECONDS, TimeLimit
from parallel_dl.cli.verified import Verified
from parallel_dl.cli.verify_report import layout_text
from parallel_dl.errors import InputError, number_of, unknown_name
from parallel_dl.files import require_memory
from parallel_dl.launch.limits import MOST_RANKS
from parallel_dl.layout import Layout

if TYPE_CHECKING:
    from parallel_dl.equivalence import Experiment
    from parallel_dl.equivalence.mutants import Mutant
    from parallel_dl.mpi import Communicator
    from parallel_dl.nn import Module

FOLDER = "PARALLEL_DL_SERIAL_RUNS"  # names the folder in which jobs keep serial runs for each other
SHAPE, CLASSES = (2, 9, 8), 10  # of the synthetic data, for networks that take their input's: nothing is alike
MOST_SAMPLES, MOST_STEPS = 1 << 16, 10_000  # the serial run goes through its samples one by one, and keeps every step
DTYPES = ("float32", "float64")


@dataclasses.dataclass
class Job:
    """What is to be verified: networks, and layouts on each number of ranks."""

    networks: list[str]
    layout: Layout | None
    ranks: list[int]
    flags: VerifyFlags
    microbatches: int | None
    mutants: bool
    """known bugs are planted"""

    @property
    def batch_size(self) -> int:
        """Samples in the global batch."""
        return (16 if self.flags.exact else 13) if self.flags.batch_size is None else self.flags.batch_size

    @property
    def optimizer(self) -> str:
        """The name of the update rule."""
        return self.flags.optimizer or "sgd"

    # -- what is refused before a rank is started ------------------------------------------------------------------
    def check(self) -> None:
        """Refuses (InputError) what can be known to be wrong before a rank is started."""
        from parallel_dl.equivalence.specimens.networks import require_known
        from parallel_dl.optim import rule_named

        if self.flags.mutant is not None:
            self._planted()
        for name in self.networks:
            require_known(name)
        rule_named(self.optimizer)
        if self.flags.dtype not in DTYPES:
            raise unknown_name("`dtype`", self.flags.dtype, DTYPES)
        if self.flags.exact and self.flags.dtype != "float64":
            raise InputError(f"--exact --dtype {self.flags.dtype}: whole numbers up to 2^53 need float64")
        self._check_numbers()
        (self.layout or Layout()).require_training(clip_norm=self.flags.clip_norm, optimizer=self.optimizer)
        for name in self.networks:
            self._check_network(name)

    def _check_numbers(self) -> None:
        flags = self.flags
        if not 0 < flags.time_limit <= MOST_SECONDS:
            said = f"must be above 0 and at most {MOST_SECONDS:g} seconds"
            raise InputError(said, "time_limit", f"{flags.time_limit:g}")
        if flags.stress and self.ranks == [1]:
            raise InputError("one rank waits for nobody; use a layout of several ranks", "stress")
        require_count("batch_size", self.batch_size, most=MOST_SAMPLES)
        require_count("steps", flags.steps, most=MOST_STEPS)
        most = max(self.batch_size, self.layout.pp if self.layout else 1)
        require_count("microbatches", self.microbatches, most=most)
        require_seed(flags.seed)
        for ranks in self.ranks:
            if self.layout is None:
                require_count("ranks", ranks, most=MOST_RANKS)
            elif ranks > MOST_RANKS:
                needs = f"{flags_of_ranks(self.layout)}: needs {number_of(ranks, 'rank')}"
                raise InputError(f"{needs}; at most {MOST_RANKS} are allowed")

    def _check_network(self, name: str) -> None:
        from parallel_dl.equivalence.runs.replayed import program_of

        what = self.experiment(name)
        trial.try_optimizer(self.optimizer, what.make_optimizer)
        trial.try_network(
            name, what.build, self.flags.loss, what.loss, what.x, what.y, self.flags.seed, self.flags.dtype
        )
        if self.layout is None:
            return
        program = program_of(what.build(), self.layout)
        if self.flags.exact and program is not None:
            raise InputError(
                f"compares one update with the whole batch, but this layout is compared with {program}", "exact"
            )
        require_fits(what.build(), what.x.shape[1:], self.layout)
        if self.layout.ranks == 1 and not self.layout.is_pipelined and not self.layout.reproducible:
            raise InputError("a layout of one rank is the serial run itself; use several ranks, or --ranks N")

    def _can_have(self, experiment: Experiment, layout: Layout) -> bool:
        """Whether a layout of --ranks or --all has the norms that were asked for."""
        try:
            layout.require_training(clip_norm=experiment.clip_norm, optimizer=self.optimizer)
        except InputError:
            return False
        return True

    def _planted(self) -> Sequence[Mutant]:
        """The bugs that are planted: races only under stress, which alone is sure to see them."""
        from parallel_dl.equivalence.mutants import MUTANTS, mutants_of
        from parallel_dl.equivalence.mutants.races import RACES

        mutant, stress = self.flags.mutant, self.flags.stress
        if mutant is not None and not stress and any(race.name == mutant for race in RACES):
            raise InputError("is reliably caught only with `stress`", "mutant", repr(mutant))
        return mutants_of(mutant, (*MUTANTS, *RACES) if stress else MUTANTS)

    # -- what is computed ------------------------------------------------------------------------------------------
    def experiment(self, name: str) -> Experiment:
        """What is computed with a network."""
        from parallel_dl.equivalence import exact_experiment, synthetic_experiment
        from parallel_dl.equivalence.specimens.programs import PROGRAMS
        from parallel_dl.optim import by_name

        build, shape, classes, loss, data = self._task(name)
        if data is None:  # twice as many, drawn in float64 and copied
            require_memory(f"--batch-size {self.batch_size}", 32 * self.batch_size * math.prod(shape))
        if self.flags.exact:
            return exact_experiment(build, shape, self.batch_size, self.flags.seed)
        rate, options = by_name.verified(self.optimizer)
        experiment = synthetic_experiment(
            build,
            shape,
            classes,
            self.batch_size,
            5 if self.flags.steps is None else self.flags.steps,
            self.flags.seed,
            self.flags.dtype,
            lambda parameters: by_name.make(self.optimizer, parameters, rate, **options),
            losses.function_of(loss),
            data,
            clip_norm=self.flags.clip_norm,
        )
        return PROGRAMS[name].of(experiment) if name in PROGRAMS else experiment

    def _task(self, name: str) -> tuple[Callable[[], Module], tuple[int, ...], int, str, tuple[Any, Any] | None]:
        """A function that makes the network, its input shape and classes, the loss and, with --dataset, the samples."""
        from parallel_dl import datasets, networks
        from parallel_dl.cli.networks import network_for
        from parallel_dl.equivalence.specimens.networks import SPECIMENS, network_named

        shipped = None if name in SPECIMENS else networks.architecture(name)
        shape = shipped.input_shape if shipped and shipped.input_shape else SHAPE
        classes = shipped.classes if shipped and shipped.classes else CLASSES
        loss, chosen = self.flags.loss, self.flags.dataset
        if chosen is None:
            losses.require_classes(loss)
            return lambda: network_named(name, shape, classes), shape, classes, loss or losses.LOSSES[0], None
        found = datasets.load(chosen, self.flags.data_dir, self.flags.dtype).with_flat_targets()
        if loss is None:
            loss = losses.LOSSES[0] if found.classes is not None else "mse"
        found = losses.fitted(loss, found)
        trial.try_loss(loss, found.outputs, found.x_train, found.y_train)

        def build() -> Module:
            if shipped is None or from_file.is_own(name):
                return network_named(name, found.input_shape, found.outputs)
            return network_for(name, found, chosen)

        build()
        return build, found.input_shape, classes, loss, (found.x_train, found.y_train)

    def _variations(self) -> dict[str, Experiment]:
        """Those tried besides the usual ones; none if the optimizer, the samples or the type of numbers are chosen."""
        from parallel_dl.equivalence.specimens.variations import VARIATIONS

        flags = self.flags
        usual = (self.optimizer, flags.clip_norm, flags.dtype, flags.dataset, flags.loss)
        if flags.exact or usual != ("sgd", None, "float64", None, None):
            return {}
        return {name: vary(self.experiment(network)) for name, (network, vary) in VARIATIONS.items()}

    # -- on the ranks ----------------------------------------------------------------------------------------------
    def run(self, comm: Communicator) -> dict[str, Any]:
        """Verifies on the ranks of `comm`, all together; on rank 0 cells, or verdicts on mutants."""
        from parallel_dl.mpi.stress import stressed

        chosen = stressed(comm, self.flags.seed) if self.flags.stress and comm.size > 1 else nullcontext(comm)
        with chosen as ranks, TimeLimit(self.flags.time_limit, comm) as limit:
            return self._mutants(ranks, limit) if self.mutants else self._cells(ranks, limit)

    def _mutants(self, comm: Communicator, limit: TimeLimit) -> dict[str, Any]:
        from parallel_dl.equivalence.mutants import noise_of_mutants, verdicts

        planted = self._planted()
        each = limit.each(
            planted, lambda mutant: f"{mutant.name!r} in {mutant.network}, {layout_text(mutant.layout.as_dict())}"
        )
        with _progress(len(planted), "mutants", comm.rank) as advance:
            found = [verdict for verdict in verdicts(comm, each) if advance() or verdict is not None]
        return {"mutants": [dataclasses.asdict(v) for v in found], "noise": noise_of_mutants(comm)}

    def _cells(self, comm: Communicator, limit: TimeLimit) -> dict[str, Any]:
        from parallel_dl.equivalence import verify
        from parallel_dl.equivalence.verify import moved

        experiments = {name: self.experiment(name) for name in self.networks}
        if self.flags.everything:
            experiments |= self._variations()
        found = Verified(os.environ.get(FOLDER), comm.size)
        done = comm.broadcast_object(len(found.cells) if comm.rank == 0 else 0)
        tasks = self._tasks(comm.size, experiments)[done:]
        with _progress(len(tasks), number_of(comm.size, "rank"), comm.rank) as advance:
            timed = limit.each(tasks, lambda task: f"{task[0]}, {layout_text(task[1].as_dict())}")
            with found.failing_on(comm.rank):
                for cell in verify(comm, experiments, timed, self.flags.exact, os.environ.get(FOLDER), done):
                    advance()
                    if cell is not None:
                        found.add(dataclasses.asdict(cell))
        cells = found.cells
        if self.flags.everything and comm.size > 1:
            cells += [dataclasses.asdict(cell) for cell in [moved(comm)] if cell is not None]
        return {"cells": cells}

    def _tasks(self, ranks: int, experiments: dict[str, Experiment]) -> list[tuple[str, Layout]]:
        """The (network, layout) pairs: the one requested, all of this many ranks, or with --all a covering set."""
        from parallel_dl.equivalence import layouts_of
        from parallel_dl.equivalence.runs.replayed import program_of
        from parallel_dl.equivalence.specimens.layouts import covering_set
        from parallel_dl.equivalence.specimens.variations import VARIATIONS

        networks = {name: (what.build(), what.x.shape[1:]) for name, what in experiments.items()}
        if self.flags.everything:
            tasks = covering_set(ranks, networks, self.microbatches, VARIATIONS)
        elif self.layout is not None:
            tasks = [(name, self.layout) for name in networks]
        else:
            tasks = [
                (name, layout)
                for name, (network, shape) in networks.items()
                for layout in layouts_of(ranks, network, shape, self.microbatches)
            ]
        if self.layout is None:
            tasks = [(name, layout) for name, layout in tasks if self._can_have(experiments[name], layout)]
        if self.flags.exact:
            tasks = [(name, layout) for name, layout in tasks if program_of(networks[name][0], layout) is None]
        return tasks


@contextmanager
def _progress(total: int, what: str, rank: int) -> Iterator[Callable[[], None]]:
    """A progress bar; gives the function that moves it on."""
    with progress(
        rank,
        lambda rich: (what, rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn()),
        transient=False,
    ) as bar:
        if bar is None:
            yield lambda: None
            return
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)

"""`parallel-dl train`: a network, a data set and a layout; one rank in this process, more by mpirun."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli import losses
from parallel_dl.cli.hybrid import Hybrid, Ranks, Scheme, VariableBatch
from parallel_dl.cli.layout import (
    Chunks,
    Dp,
    LayoutFile,
    Microbatches,
    Pp,
    Reproducible,
    Schedule,
    Stage,
    flags_of_ranks,
    in_words_of,
    layout_of,
    require_fits,
)
from parallel_dl.cli.limits import of_flag, of_ranks, require_count
from parallel_dl.cli.networks import network_for
from parallel_dl.cli.splits import Mp, Split
from parallel_dl.cli.terminal import console, for_ranks
from parallel_dl.errors import InputError, number_of, unknown_name
from parallel_dl.files import require_writable

if TYPE_CHECKING:
    from parallel_dl.cost import NetworkCost
    from parallel_dl.datasets import Dataset
    from parallel_dl.layout import Layout
    from parallel_dl.mpi import Communicator
    from parallel_dl.nn import Module
    from parallel_dl.optim import Optimizer
    from parallel_dl.trainer import Result, Trainer

OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
RATE_POLICIES = ("constant", "step", "cosine")
DTYPES = ("float32", "float64")

_RATE_OF_LARS = 1.0
_BATCH_SIZE = 64  # unless given
_WORK_FOR_THREADS = 1 << 25  # multiply-adds in a forward pass's products, below which one BLAS thread is best


@dataclasses.dataclass
class Job:
    """The flags of one `train`."""

    network: str
    layout: Layout
    dataset: str
    data_dir: str | None
    batch_size: int
    epochs: int
    steps: int | None
    loss: str
    optimizer: str
    lr: float | None
    momentum: float | None
    nesterov: bool
    weight_decay: float | None
    lr_policy: str | None
    warmup: int
    seed: int
    dtype: str
    allreduce: str
    checked: bool
    ledger: bool
    input_rate: float | None
    weights: str | None
    output: str | None
    clip_norm: float | None = None
    layout_file: str | None = None

    def check(self) -> Dataset:
        """Refuses (InputError) whatever can be known to be wrong before a rank is started; returns the data."""
        from parallel_dl import checkpoint, datasets, networks
        from parallel_dl.nn import Parameter, initializers

        networks.require_known(self.network)
        losses.require_known(self.loss)
        for flag, value, valid in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("lr-policy", self.lr_policy or RATE_POLICIES[0], RATE_POLICIES),
            ("dtype", self.dtype, DTYPES),
            ("allreduce", self.allreduce, ("auto", "window", "mpi")),
        ):
            if value not in valid:
                raise unknown_name(f"--{flag}", value, valid)
        for flag, number in (("batch-size", self.batch_size), ("epochs", self.epochs), ("steps", self.steps)):
            require_count(flag, number)
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: must be in 0..2**63-1")
        if self.input_rate is not None and not 1e-6 <= self.input_rate <= 1e12:
            raise InputError(f"--input-rate {self.input_rate}: must be in 1e-6..1e12 samples per second")
        self.check_rule()
        if self.output is not None:
            with of_flag("--output"):
                require_writable(self.output)
        self.make_optimizer([Parameter((1,), initializers.constant(0.0))], 1)
        data = datasets.load(self.dataset, self.data_dir, self.dtype).with_flat_targets()
        data = losses.fitted(self.loss, data)
        self.layout.require_microbatches(min(self.batch_size, len(data.x_train)))
        network = network_for(self.network, data, self.dataset)
        if self.layout.reproducible:
            self.check_reproducible(network, data)
        require_fits(network, data.input_shape, self.layout)
        self.layout.updates(len(data.x_train), self.batch_size, self.epochs, self.steps)
        if self.weights is not None:
            with of_flag("--weights"):
                checkpoint.require_fits(self.weights, network)
        return data

    def check_rule(self) -> None:
        """Refuses what the update rule cannot have."""
        if self.optimizer not in ("sgd", "lars") and (self.momentum is not None or self.nesterov):
            flag, owners = ("--nesterov", "sgd") if self.momentum is None else ("--momentum", "sgd and lars")
            raise InputError(f"{flag}: belongs to --optimizer {owners}, not to {self.optimizer}")
        if self.optimizer == "lars" and self.nesterov:
            raise InputError("--nesterov belongs to --optimizer sgd, not to lars")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InputError(f"--momentum {self.momentum}: must be at least 0 and below 1")
        if self.nesterov and self.momentum == 0:
            raise InputError("--nesterov: needs a --momentum above 0")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise InputError(f"--weight-decay {self.weight_decay}: must be a finite number, at least 0")
        require_count("warmup", self.warmup, 0)
        self.layout.require_clip_norm(self.clip_norm)

    def check_reproducible(self, network: Module, data: Dataset) -> None:
        """Refuses what cannot be the same bits in every layout; `network` is then cut into leaves."""
        from parallel_dl.reproducible import cut_into_leaves

        if self.allreduce != "auto":
            raise InputError(f"--allreduce {self.allreduce}: --reproducible sums in a tree of its own; leave one out")
        cut_into_leaves(network, data.input_shape)

    def make_optimizer(self, parameters: Any, updates: int) -> Optimizer:
        """The optimizer the flags ask for, its rate planned over this number of updates."""
        from parallel_dl import networks, optim

        shipped = networks.NETWORKS[self.network]
        rate = self.lr
        if rate is None:
            rate = {"sgd": shipped.lr, "lars": _RATE_OF_LARS}.get(self.optimizer, 1e-3)
        if not (rate >= 0 and math.isfinite(rate)):
            raise InputError(f"--lr {rate}: must be a finite number, at least 0")
        name = self.lr_policy or shipped.lr_policy
        if name == "step":
            policy = optim.rates.step(rate, max(1, updates // 3))
        elif name == "cosine":
            policy = optim.rates.cosine(rate, updates)
        else:
            policy = optim.rates.constant(rate)
        policy = optim.rates.warmup(policy, self.warmup)
        decay: dict[str, Any] = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        momentum = 0.9 if self.momentum is None else self.momentum
        if self.optimizer == "lars":
            return optim.LARS(parameters, policy, momentum, **decay)
        if self.optimizer == "sgd":
            return optim.SGD(parameters, policy, momentum=momentum, nesterov=self.nesterov, **decay)
        return (optim.Adam if self.optimizer == "adam" else optim.AdamW)(parameters, policy, **decay)

    def train(self, world: Communicator, dataset: Dataset) -> tuple[dict[str, Any], Result, str, dict[str, Any] | None]:
        """Trains on the ranks of `world`: the run's JSON object, its result, how gradients were summed, and the state.

        The state, for --output, is there only on rank 0 and with the flag.
        """
        import numpy as np

        from parallel_dl import checkpoint
        from parallel_dl.cost import cost_of
        from parallel_dl.mpi import Mesh, gather_rows, one_blas_thread
        from parallel_dl.trainer import Trainer

        network = network_for(self.network, dataset, self.dataset)
        network.initialize(self.seed, self.dtype, fill=False)  # a layer that is split is never drawn in full
        forward = cost_of(network, dataset.input_shape, min(self.batch_size, len(dataset.x_train)))
        if _work_in_products(forward) < _WORK_FOR_THREADS:
            one_blas_thread()
        updates = self.layout.updates(len(dataset.x_train), self.batch_size, self.epochs, self.steps)
        # with it MPICH takes ranks of one node for ranks of several
        unshared = world.size > 1 and not world.is_one_node and launch.without_shared_memory()
        trainer = Trainer(
            network,
            lambda parameters: self.make_optimizer(parameters, updates),
            self.layout,
            Mesh(world, pipe=self.layout.pp, data=self.layout.dp, model=self.layout.mp),
            "mpi" if unshared and not self.layout.reproducible else self.allreduce,
            losses.function_of(self.loss),
            dataset.input_shape,
            self.clip_norm,
        )
        if self.weights is not None:
            with of_flag("--weights"):
                weights = checkpoint.read(self.weights)
            trainer.load_state_dict(weights)
        note = trainer.gradients.note
        if unshared and self.allreduce != "mpi" and not self.layout.reproducible:
            note = "gradients are summed by MPI's all-reduce: /dev/shm is too small for MPICH's shared memory"
        if note and world.rank == 0:
            print(f"parallel-dl: {note}", file=sys.stderr)
        # a run that diverges is told by its losses, not by NumPy's warnings from every rank
        with _progress(updates, world.rank) as report, np.errstate(over="ignore", invalid="ignore"):
            result = trainer.fit(dataset, self.batch_size, self.seed, self.epochs, self.steps, report, self.input_rate)
        facts = self.as_json(dataset, result, trainer)
        if result.stream is not None:
            facts["stream"] = dataclasses.asdict(result.stream)
        if world.ledger is not None:
            facts["ledger"] = [dataclasses.asdict(row) for row in gather_rows(world, world.ledger)]
        for note in (result.note, _diverged(result.losses), self.covers_all(dataset)):
            if note and world.rank == 0:
                print(f"parallel-dl: {note}", file=sys.stderr)
        state = None if self.output is None else trainer.gather_state()
        trainer.free()
        return facts, result, trainer.gradients.method, state if world.rank == 0 else None

    def save(self, state: dict[str, Any] | None, facts: dict[str, Any]) -> bool:
        """Writes --output, if there is a state."""
        from parallel_dl import checkpoint

        if self.output is not None and state is not None:
            with of_flag("--output"):
                checkpoint.save(self.output, state, {**facts, "losses": None, "ledger": None, "stream": None})
        return True

    def covers_all(self, dataset: Dataset) -> str | None:
        """A note if the data set has fewer samples than the --batch-size that was asked for."""
        samples = len(dataset.x_train)
        if self.batch_size in (_BATCH_SIZE, samples) or self.batch_size < samples:
            return None
        return f"--batch-size {self.batch_size}: one batch has all {number_of(samples, 'training sample')}"

    def as_json(self, dataset: Dataset, result: Result, trainer: Trainer) -> dict[str, Any]:
        """One object, everything in it finite or null."""
        return {
            "network": self.network,
            "dataset": dataset.name,
            "layout": trainer.layout_as_dict(),
            "ranks": self.layout.ranks,
            "batch_size": self.batch_size,
            "steps": len(result.losses),
            "losses": [_finite(loss) for loss in result.losses],
            "test_loss": _finite(result.test_loss),
            "test_accuracy": _finite(result.test_accuracy),
            "seconds": _finite(result.seconds),
            "samples_per_second": _finite(result.samples_per_second),
            "weights_sha256": trainer.weights_sha256(),
        }


def _work_in_products(forward: NetworkCost) -> int:
    """Multiply-adds of one matrix product per layer, for all samples: what BLAS could share among threads.

    A fully connected layer is one product, a convolution (by im2col) one for each row of its result: many small ones,
    at the end of each of which threads wait for each other. (Winograd's are somewhat larger.)
    """
    return sum(
        layer.multiply_adds * forward.samples // (layer.output_shape[1] if layer.kind == "Conv2d" else 1)
        for layer in forward.layers
    )


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _diverged(found: list[float]) -> str | None:
    """A note if the losses are no longer finite."""
    first = next((update for update, loss in enumerate(found) if not math.isfinite(loss)), None)
    return None if first is None else f"the loss is not finite from update {first} on; try a smaller --lr"


@contextmanager
def _progress(updates: int, rank: int) -> Iterator[Callable[[int, int, float], None] | None]:
    """A progress bar on a terminal's stderr (rank 0 only); gives the function `report` for Trainer.fit, or None."""
    screen = console(stderr=True) if rank == 0 else None
    if screen is None or not screen.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]}"), console=screen, transient=True) as bar:
        task = bar.add_task("training", total=updates, loss="")
        yield lambda done, _, loss: bar.update(task, completed=done, loss=f"{loss:.4f}")


def train(
    context: typer.Context,
    network: Annotated[str, typer.Argument(help="Which network.")],
    layout_file: LayoutFile = None,
    dp: Dp = None,
    mp: Mp = None,
    split: Split = None,
    pp: Pp = None,
    schedule: Schedule = None,
    stage: Stage = None,
    chunks: Chunks = None,
    microbatches: Microbatches = None,
    hybrid: Hybrid = None,
    ranks: Ranks = None,
    scheme: Scheme = None,
    variable_batch: VariableBatch = False,
    dataset: Annotated[str, typer.Option(help="digits, fashion-mnist, cifar-10, idx, npz or a path.")] = "digits",
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data set's files.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples in the global batch.")] = _BATCH_SIZE,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 20,
    steps: Annotated[int | None, typer.Option(help="Number of updates; overrides --epochs.")] = None,
    loss: Annotated[str, typer.Option(help="cross-entropy, logistic or mse.")] = "cross-entropy",
    optimizer: Annotated[str, typer.Option(help="sgd, adam, adamw or lars.")] = "sgd",
    lr: Annotated[
        float | None, typer.Option(help="Learning rate. [default: sgd the network's, adam and adamw 0.001, lars 1]")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd and lars. [default: 0.9]")] = None,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov's momentum, for sgd.")] = False,
    weight_decay: Annotated[float | None, typer.Option(help="[default: 0; adamw 0.01]")] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Shortens all gradients together to this norm. [default: never]")
    ] = None,
    lr_policy: Annotated[
        str | None,
        typer.Option(help="constant, step (a tenth after each third) or cosine. [default: the network's]"),
    ] = None,
    warmup: Annotated[int, typer.Option(help="First updates, over which the rate rises.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the weights, the order of samples and dropout.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    allreduce: Annotated[str, typer.Option(help="How gradients are summed: auto, window or mpi.")] = "auto",
    checked: Annotated[bool, typer.Option("--checked", help="Compare every collective over the ranks first.")] = False,
    ledger: Annotated[bool, typer.Option("--ledger", help="Count messages and bytes, and show them.")] = False,
    reproducible: Reproducible = False,
    input_rate: Annotated[
        float | None, typer.Option(help="Samples that come in per second. [default: all are there at the start]")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Start from the weights in this file (safetensors).")] = None,
    output: Annotated[str | None, typer.Option(help="Write the weights here (safetensors).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Train a network on --dp x --mp x --pp ranks, which are started by mpirun unless this runs inside one."""
    inside = launch.inside_mpirun()
    job = Job(
        network,
        layout_of(
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
        ),
        dataset,
        data_dir,
        batch_size,
        epochs,
        steps,
        loss,
        optimizer,
        lr,
        momentum,
        nesterov,
        weight_decay,
        lr_policy,
        warmup,
        seed,
        dtype,
        allreduce,
        checked,
        ledger,
        input_rate,
        weights,
        output,
        clip_norm,
        layout_file,
    )
    if not inside:
        with in_words_of(layout_file):
            data = job.check()
        if job.layout.ranks > 1:
            with in_words_of(layout_file), of_ranks(flags_of_ranks(job.layout), job.layout.ranks):
                return launch.run(job.layout.ranks, ["-m", "parallel_dl", *context.obj], for_ranks())
        return _train_here(job, data, as_json)
    return _train_here(job, None, as_json)


def _train_here(job: Job, data: Dataset | None, as_json: bool) -> int:
    """This process is one rank: of an mpirun's, or the only one."""
    from parallel_dl.cli.agreement import agreed
    from parallel_dl.mpi import Communicator, Ledger, world

    comm = world()
    if job.checked or job.ledger:
        comm = Communicator(comm.mpi, checked=job.checked or None, ledger=Ledger() if job.ledger else None)

    def prepare() -> Dataset:
        with in_words_of(job.layout_file):
            return check_ranks()

    def check_ranks() -> Dataset:
        dp, mp, pp = job.layout.dp, job.layout.mp, job.layout.pp
        if job.layout.hybrid and job.layout.ranks != comm.size:
            raise InputError(f"--ranks {dp}: mpirun started {comm.size}; valid here is --ranks {comm.size}")
        if job.layout.ranks != comm.size:
            valid = f"--{'pp' if pp > 1 else 'mp'} {_divisors(comm.size)}"
            if comm.size % (mp * pp) == 0:
                valid = f"--dp {comm.size // (mp * pp)}"
            elif mp > 1 and pp > 1:
                valid = f"--dp, --mp and --pp whose product is {comm.size}"
            needs = f"{flags_of_ranks(job.layout)}: needs {number_of(job.layout.ranks, 'rank')}"
            raise InputError(f"{needs}, but mpirun started {comm.size}; valid here is {valid}")
        return job.check() if data is None else data

    dataset = agreed(comm, prepare)
    facts, result, method, state = job.train(comm, dataset)
    try:
        if comm.rank == 0:
            if as_json:
                print(json.dumps(facts), flush=True)
            else:
                _print_table(facts, result, method)
                if rounds_by_layout(job):
                    console().print(_ROUNDING, soft_wrap=True)
    finally:  # results first; if printing or writing fails, the other is still done
        if job.output is not None:
            agreed(comm, lambda: job.save(state, facts))
    return 0


_ROUNDING = "In float32 the losses of another layout differ from these by rounding: compare with --dtype float64."


def rounds_by_layout(job: Job) -> bool:
    """Whether rounding may make this run differ visibly from one in another layout. Stages alone change no sum."""
    return job.dtype == "float32" and max(job.layout.dp, job.layout.mp) > 1 and not job.layout.reproducible


def _divisors(ranks: int) -> str:
    """What divides it, to be read."""
    return " or ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)


def _print_table(facts: dict[str, Any], result: Result, method: str) -> None:
    from rich.table import Table

    layout, losses = facts["layout"], facts["losses"]
    table = Table(title=f"{facts['network']} on {facts['dataset']}", show_header=False, title_justify="left")
    kinds = {"dp": "data parallel", "mp": "model parallel", "pp": "pipeline", "microbatches": "microbatches"}
    table.add_row("ranks", f"{facts['ranks']} ({', '.join(f'{kind} {layout[key]}' for key, kind in kinds.items())})")
    if "hybrid" in layout:
        updated = ", fully connected layers updated after each part" if layout["hybrid"]["variable_batch"] else ""
        table.add_row("hybrid", f"one weird trick, scheme {layout['hybrid']['scheme']}{updated}")
    if layout["schedule"]:
        table.add_row("schedule", layout["schedule"])
    if layout["split"]:
        table.add_row("layers split", ", ".join(f"{layer} {how}" for layer, how in layout["split"].items()))
    if layout["dp"] > 1:
        table.add_row("gradients summed by", {"window": "shared memory", "mpi": "MPI", "tree": "a fixed tree"}[method])
    table.add_row("batch size", str(facts["batch_size"]))
    table.add_row("updates", f"{facts['steps']} in {facts['seconds']:.2f} s")
    table.add_row("samples per second", f"{facts['samples_per_second']:,.0f}")
    ends = [losses[0], losses[-1]] if len(losses) > 1 else losses
    if "stream" in facts:
        stream = facts["stream"]
        table.add_row(
            "samples came in", f"{stream['rate']:,.6g} per second, {stream['seconds_waited']:.2f} s waited for"
        )
        if stream["throughput"] is not None:
            taken, growth = stream["throughput"], stream["queue_growth"]
            grew = f"the queue grew by {growth:,.0f}" if growth >= 0.5 else "the queue did not grow"
            table.add_row("steady state", f"{taken:,.0f} taken per second, {grew}")
        table.add_row("queue at the end", number_of(stream["queue"], "sample"))
    table.add_row("loss", " -> ".join("not finite" if x is None else f"{x:.6f}" for x in ends))
    loss, accuracy = facts["test_loss"], facts["test_accuracy"]
    unknown = "not computed" if result.test_loss is None else "not finite"
    table.add_row("test loss", unknown if loss is None else f"{loss:.6f}")
    table.add_row("test accuracy", "none: the targets are not classes" if accuracy is None else f"{accuracy:.2%}")
    if layout.get("reproducible"):
        table.add_row("reproducible: weights", facts["weights_sha256"])
    console().print(table)
    if "ledger" in facts:
        _print_ledger(facts["ledger"])


def _print_ledger(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    if not rows:
        console().print("ledger: nothing was sent")
        return
    caption = (
        "What the updates passed to MPI. Sends one by one; for MPI's own collectives the payload:\n"
        "all_reduce the array, all_gather what the others have, reduce_scatter what they get."
    )
    table = Table(title="ledger", caption=caption, box=box.SIMPLE, title_justify="left", caption_justify="left")
    for key in rows[0]:
        numeric = key not in ("axis", "layer", "direction", "call")
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row.values()))
    screen = console()
    # a narrow screen wraps the lines; a cut number would be wrong
    screen.width = max(screen.width, table.__rich_measure__(screen, screen.options.update(max_width=1000)).maximum)
    screen.print(table)

"""One training run of the command line: its refused flags, the run itself, and its results."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from parallel_dl import launch
from parallel_dl.cli import losses, trial
from parallel_dl.cli.flags import BATCH_SIZE, TrainingFlags
from parallel_dl.cli.layout import require_fits
from parallel_dl.cli.limits import of_flag, require_count, require_seed
from parallel_dl.cli.networks import network_for
from parallel_dl.cli.report import finite, progress
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

RATE_POLICIES = ("constant", "step", "cosine")
DTYPES = ("float32", "float64")
ALL_REDUCES = ("auto", "window", "mpi")

_WORK_FOR_THREADS = 1 << 25  # multiply-adds in a forward pass's products, below which one BLAS thread is best


@dataclasses.dataclass
class Job:
    """A network, the layout and the flags of one `train`."""

    network: str
    layout: Layout
    flags: TrainingFlags
    layout_file: str | None = None

    # -- what is refused before a rank is started ------------------------------------------------------------------
    def check(self) -> Dataset:
        """Refuses (InputError) whatever can be known to be wrong before a rank is started; returns the data."""
        from parallel_dl import checkpoint, datasets, networks

        flags, layout = self.flags, self.layout
        networks.architecture(self.network)
        losses.function_of(flags.loss)
        self._check_flags()
        self._check_rule()
        if flags.output is not None:
            with of_flag("--output"):
                require_writable(flags.output)
        data = datasets.load(flags.dataset, flags.data_dir, flags.dtype).with_flat_targets()
        data = losses.fitted(flags.loss, data)
        trial.try_loss(flags.loss, data.outputs, data.x_train, data.y_train)
        layout.require_microbatches(min(flags.batch_size, len(data.x_train)))

        def build() -> Module:
            return network_for(self.network, data, flags.dataset)

        network = build()
        loss, samples = losses.function_of(flags.loss), (data.x_train, data.y_train)
        trial.try_network(self.network, build, flags.loss, loss, *samples, flags.seed, flags.dtype)
        require_fits(network, data.input_shape, layout)
        layout.updates(len(data.x_train), flags.batch_size, flags.epochs, flags.steps)
        if flags.weights is not None:
            with of_flag("--weights"):
                checkpoint.require_fits(flags.weights, network)
        return data

    def _check_flags(self) -> None:
        flags = self.flags
        for field, value, valid in (
            ("lr_policy", flags.lr_policy or RATE_POLICIES[0], RATE_POLICIES),
            ("dtype", flags.dtype, DTYPES),
            ("allreduce", flags.allreduce, ALL_REDUCES),
        ):
            if value not in valid:
                raise unknown_name(f"`{field}`", value, valid)
        for field, number in (("batch_size", flags.batch_size), ("epochs", flags.epochs), ("steps", flags.steps)):
            require_count(field, number)
        require_seed(flags.seed)
        if flags.input_rate is not None and not 1e-6 <= flags.input_rate <= 1e12:
            raise InputError("must be in 1e-6..1e12 samples per second", "input_rate", flags.input_rate)

    def _check_rule(self) -> None:
        """Refuses what the update rule cannot have."""
        require_count("warmup", self.flags.warmup, 0)
        flags = self.flags
        self.layout.require_training(clip_norm=flags.clip_norm, optimizer=flags.optimizer, allreduce=flags.allreduce)
        trial.try_optimizer(flags.optimizer, lambda parameters: self.make_optimizer(parameters, 1))

    # -- the optimizer ---------------------------------------------------------------------------------------------
    @property
    def _rate(self) -> float:
        """--lr, or the rate that goes with the update rule, for SGD the network's."""
        from parallel_dl import networks
        from parallel_dl.optim.by_name import default_rate

        if self.flags.lr is not None:
            return self.flags.lr
        rate = None if self.flags.optimizer == "sgd" else default_rate(self.flags.optimizer)
        return networks.architecture(self.network).lr if rate is None else rate

    def _options(self) -> dict[str, Any]:
        """The options of the update rule."""
        from parallel_dl.optim.by_name import FLAGS, options_of

        given = {name: getattr(self.flags, name) for name in FLAGS}
        chosen = {name: value for name, value in given.items() if value is not None and value is not False}
        return options_of(self.flags.optimizer, chosen)

    def make_optimizer(self, parameters: Any, updates: int) -> Optimizer:
        """The optimizer the flags ask for, its rate planned over this number of updates."""
        from parallel_dl import networks, optim

        rate, name = self._rate, self.flags.lr_policy or networks.architecture(self.network).lr_policy
        if name == "step":
            policy = optim.rates.step(rate, max(1, updates // 3))
        elif name == "cosine":
            policy = optim.rates.cosine(rate, updates)
        else:
            policy = optim.rates.constant(rate)
        policy = optim.rates.warmup(policy, self.flags.warmup)
        return optim.make(self.flags.optimizer, parameters, policy, **self._options())

    # -- the run ---------------------------------------------------------------------------------------------------
    def train(self, world: Communicator, dataset: Dataset) -> tuple[dict[str, Any], Result, str, dict[str, Any] | None]:
        """Trains on the ranks of `world`: the run's JSON object, its result, how gradients were summed, and the state.

        The state, for --output, is there only on rank 0 and with the flag.
        """
        import numpy as np

        from parallel_dl.mpi import gather_rows

        flags = self.flags
        updates = self.layout.updates(len(dataset.x_train), flags.batch_size, flags.epochs, flags.steps)
        trainer = self._trainer(world, dataset, updates)
        # a run that diverges is told by its losses, not by NumPy's warnings from every rank
        with _progress(updates, world.rank) as report, np.errstate(over="ignore", invalid="ignore"):
            result = trainer.fit(
                dataset, flags.batch_size, flags.seed, flags.epochs, flags.steps, report, flags.input_rate
            )
        facts = self._facts(dataset, result, trainer)
        if result.stream is not None:
            facts["stream"] = dataclasses.asdict(result.stream)
        if world.ledger is not None:
            facts["ledger"] = [dataclasses.asdict(row) for row in gather_rows(world, world.ledger)]
        _say(world, result.note, _diverged(result.losses), self._covers_all(dataset))
        state = None if flags.output is None else trainer.gather_state()
        trainer.free()
        return facts, result, trainer.gradients.method, state if world.rank == 0 else None

    def _trainer(self, world: Communicator, dataset: Dataset, updates: int) -> Trainer:
        from parallel_dl import checkpoint
        from parallel_dl.cost import cost_of
        from parallel_dl.mpi import Mesh, one_blas_thread
        from parallel_dl.trainer import Trainer

        flags, layout = self.flags, self.layout
        network = network_for(self.network, dataset, flags.dataset)
        network.initialize(flags.seed, flags.dtype, fill=False)  # a layer that is split is never drawn in full
        forward = cost_of(network, dataset.input_shape, min(flags.batch_size, len(dataset.x_train)))
        if _work_in_products(forward) < _WORK_FOR_THREADS:
            one_blas_thread()
        idle = _nothing_split(network, dataset.input_shape, layout)
        # with it MPICH takes ranks of one node for ranks of several
        unshared = world.size > 1 and not world.is_one_node and launch.without_shared_memory()
        trainer = Trainer(
            network,
            lambda parameters: self.make_optimizer(parameters, updates),
            layout,
            Mesh(world, pipe=layout.pp, data=layout.dp, model=layout.mp),
            "mpi" if unshared and not layout.reproducible else flags.allreduce,
            losses.function_of(flags.loss),
            dataset.input_shape,
            flags.clip_norm,
        )
        if flags.weights is not None:
            with of_flag("--weights"):
                weights = checkpoint.read(flags.weights)
            trainer.load_state_dict(weights)
        _say(world, idle)
        note = trainer.gradients.note
        if unshared and flags.allreduce != "mpi" and not layout.reproducible:
            note = "gradients are summed by MPI's all-reduce: /dev/shm is too small for MPICH's shared memory"
        _say(world, note)
        return trainer

    def save(self, state: dict[str, Any] | None, facts: dict[str, Any]) -> bool:
        """Writes --output, if there is a state."""
        from parallel_dl import checkpoint

        if self.flags.output is not None and state is not None:
            with of_flag("--output"):
                checkpoint.save(self.flags.output, state, {**facts, "losses": None, "ledger": None, "stream": None})
        return True

    @property
    def rounds_by_layout(self) -> bool:
        """Whether rounding may make this run differ visibly from one in another layout. Stages alone change no sum."""
        layout = self.layout
        return self.flags.dtype == "float32" and max(layout.dp, layout.mp) > 1 and not layout.reproducible

    def _covers_all(self, dataset: Dataset) -> str | None:
        """A note if the data set has fewer samples than the --batch-size that was asked for."""
        samples, asked = len(dataset.x_train), self.flags.batch_size
        if asked in (BATCH_SIZE, samples) or asked < samples:
            return None
        return f"--batch-size {asked}: a batch holds all {number_of(samples, 'training sample')}"

    def _facts(self, dataset: Dataset, result: Result, trainer: Trainer) -> dict[str, Any]:
        """One object, everything in it finite or null."""
        return finite(
            {
                "network": self.network,
                "dataset": dataset.name,
                "layout": trainer.layout_as_dict(),
                "ranks": self.layout.ranks,
                "batch_size": self.flags.batch_size,
                "steps": len(result.losses),
                "losses": result.losses,
                "test_loss": result.test_loss,
                "test_accuracy": result.test_accuracy,
                "seconds": result.seconds,
                "samples_per_second": result.samples_per_second,
                "weights_sha256": trainer.weights_sha256(),
            }
        )


def _work_in_products(forward: NetworkCost) -> int:
    """Multiply-adds of one matrix product per layer, for all samples: what BLAS could share among threads.

    A fully connected layer is one product, a convolution (by im2col) one for each row of its result: many small ones,
    at the end of each of which threads wait for each other. (Winograd's are somewhat larger.)
    """
    return sum(
        layer.multiply_adds * forward.samples // (layer.output_shape[1] if layer.kind == "Conv2d" else 1)
        for layer in forward.layers
    )


def _say(world: Communicator, *notes: str | None) -> None:
    for note in notes:
        if note and world.rank == 0:
            print(f"parallel-dl: {note}", file=sys.stderr)


def _nothing_split(network: Module, input_shape: Sequence[int], layout: Layout) -> str | None:
    """A note if --mp leaves every layer whole: there is no default for layers of the user's own."""
    from parallel_dl.nn import layer_shapes
    from parallel_dl.splits import default_splits
    from parallel_dl.splits.rule import ways_of

    if not layout.splits_layers or layout.split or default_splits(network, input_shape, layout.mp):
        return None
    layers = [passed for passed in layer_shapes(network, input_shape) if passed.layer.parameters()]
    ways = [f"--split {passed.name}={way}" for passed in layers for way in ways_of(passed.layer)]
    does = f"--mp {layout.mp}: no layer is split, so each rank computes all of the network"
    return f"{does}; possible are {', '.join(ways[:4])}{', ...' * (len(ways) > 4)}" if ways else does


def _diverged(found: list[float]) -> str | None:
    """A note if the losses are no longer finite."""
    first = next((update for update, loss in enumerate(found) if not math.isfinite(loss)), None)
    return None if first is None else f"the loss is not finite from update {first} on; try a smaller --lr"


@contextmanager
def _progress(updates: int, rank: int) -> Iterator[Callable[[int, int, float], None] | None]:
    """A progress bar; gives the function `report` for Trainer.fit, or None where there is no terminal."""
    with progress(
        rank,
        lambda rich: (
            "training",
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            "{task.fields[loss]}",
        ),
    ) as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("training", total=updates, loss="")
        yield lambda done, _, loss: bar.update(task, completed=done, loss=f"loss {loss:.4f}")

"""Known bugs of parallel programs, planted one at a time: does the proof catch each, and name it?

Every mutant exchanges a function of the package for a wrong one while it is planted; the package itself has no
switches. A serial run stays right: only what ranks do together, or what a rank is given, is wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from parallel_dl import nn, partition
from parallel_dl.autograd import ops, primitive
from parallel_dl.data_parallel import gradients as data_parallel
from parallel_dl.data_parallel.gradients import GradientAllReduce
from parallel_dl.datasets import Batch, Loader, Share
from parallel_dl.equivalence.compare import compare
from parallel_dl.equivalence.divergence import first_divergence
from parallel_dl.equivalence.raced import race_in, told
from parallel_dl.equivalence.record import Experiment, record
from parallel_dl.equivalence.reference import Reference, reference_of
from parallel_dl.equivalence.trace import Trace, trace
from parallel_dl.equivalence.verify import synthetic_experiment, verify_one
from parallel_dl.errors import unknown_name
from parallel_dl.hybrid import Part, one_weird_trick
from parallel_dl.hybrid.exchange import Reduction
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import ModelParallel
from parallel_dl.model_parallel import axis as model_axis
from parallel_dl.model_parallel import losses as split_losses
from parallel_dl.model_parallel import network as split_network
from parallel_dl.model_parallel.linear import RowParallelLinear
from parallel_dl.mpi import Communicator, Mesh, collectives, world
from parallel_dl.pipeline_parallel.runner import StageRunner
from parallel_dl.splits.moves import AllReduce, Gather, Replicate, Unshard
from parallel_dl.trainer import Trainer

Plant = Callable[[ExitStack], None]
RANKS = 2


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug: on which network and layout it is planted, and what its diagnosis has to say (one of the phrases)."""

    name: str
    network: str
    layout: Layout
    plant: Plant
    says: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    name: str
    caught: bool
    named: bool
    """whether the diagnosis says what it is"""
    diagnosis: str
    error: float | None
    """the largest, relative to the sum of magnitudes; None when the program refused or broke"""


def replaced(stack: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Exchanges owner.name for make(owner.name) until the stack is closed."""
    before = getattr(owner, name)
    stack.callback(setattr, owner, name, before)
    setattr(owner, name, make(before))


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Inside, the package has this bug."""
    with ExitStack() as stack:
        mutant.plant(stack)
        yield


# -- data parallelism ----------------------------------------------------------------------------------------------
def _batches(change: Callable[[Loader, Share, np.ndarray, int], Share]) -> Plant:
    """Lets a loader of several ranks give other shares: `change` gets the loader, a share, its batch and its start."""

    def make(before: Any) -> Any:
        def wrong(loader: Loader, order: np.ndarray, step: int) -> Batch:
            batch = before(loader, order, step)
            if loader.ranks == 1:
                return batch
            indices = order[step * loader.batch_size : (step + 1) * loader.batch_size]
            parts = [change(loader, part, indices, part.first) for part in batch.microbatches]
            return Batch(batch.step, batch.size, parts)

        return wrong

    return lambda stack: replaced(stack, Loader, "_batch", make)


def _divide_by_share(loader: Loader, part: Share, indices: np.ndarray, first: int) -> Share:
    per_microbatch = (partition.share(len(indices), loader.microbatches, m) for m in range(loader.microbatches))
    own = (partition.share(cut.stop - cut.start, loader.ranks, loader.rank) for cut in per_microbatch)
    return dataclasses.replace(part, size=sum(cut.stop - cut.start for cut in own))


def _next_samples(loader: Loader, part: Share, indices: np.ndarray, first: int) -> Share:
    chosen = np.roll(indices, -1)[first : first + len(part.x)]
    return dataclasses.replace(part, x=loader.x[chosen], y=loader.y[chosen])


def _swapped_samples(loader: Loader, part: Share, indices: np.ndarray, first: int) -> Share:
    """Samples of one rank, targets of its neighbour."""
    chosen = np.roll(indices, -1)[first : first + len(part.x)]
    return dataclasses.replace(part, y=loader.y[chosen])


def _local_gradients(scale: Callable[[GradientAllReduce], float]) -> Plant:
    """Multiplies the ranks' gradients before they are summed."""

    def make(before: Any) -> Any:
        def wrong(reduction: GradientAllReduce) -> None:
            for parameter in reduction.parameters:
                if parameter.grad is not None and reduction.comm.size > 1:
                    parameter.grad *= scale(reduction)
            before(reduction)

        return wrong

    return lambda stack: replaced(stack, GradientAllReduce, "all_reduce", make)


def _no_all_reduce(stack: ExitStack) -> None:
    replaced(stack, GradientAllReduce, "all_reduce", lambda before: lambda reduction: None)


def _only_last_microbatch(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(trainer: Trainer, microbatch: Share) -> None:
            if trainer.mesh.world.size > 1:
                trainer.optimizer.zero_grad()
            before(trainer, microbatch)

        return wrong

    replaced(stack, Trainer, "_take", make)


def _microbatch_is_batch(stack: ExitStack) -> None:
    """Each microbatch's loss is divided by its own size."""

    def make(before: Any) -> Any:
        def wrong(loader: Loader, order: np.ndarray, step: int) -> Batch:
            batch = before(loader, order, step)
            if loader.ranks == 1:
                return batch
            parts = [dataclasses.replace(part, size=max(1, part.of_all)) for part in batch.microbatches]
            return Batch(batch.step, batch.size, parts)

        return wrong

    replaced(stack, Loader, "_batch", make)


def _local_batch_norm(stack: ExitStack) -> None:
    replaced(stack, data_parallel, "synchronize_batch_norm", lambda before: lambda network, comm: None)


def _masks_by_rank(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(layer: nn.Dropout, seed: int, *arguments: Any) -> np.ndarray:
            return before(layer, seed + _rank(), *arguments)

        return wrong

    replaced(stack, nn.Dropout, "keep", make)


def _masks_by_share(stack: ExitStack) -> None:
    """Every rank counts its samples from 0."""

    def make(before: Any) -> Any:
        def wrong(layer: nn.Dropout, seed: int, step: int, name: str, shape: Any, first: Any) -> np.ndarray:
            return before(layer, seed, step, name, shape, 0 if _rank() else first)

        return wrong

    replaced(stack, nn.Dropout, "keep", make)


def _rank() -> int:
    """Of the whole job; 0 while rank 0 runs alone."""
    return world().rank


def _seed_by_rank(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(network: nn.Module, seed: int = 0, *arguments: Any, **named: Any) -> nn.Module:
            return before(network, seed + _rank(), *arguments, **named)

        return wrong

    replaced(stack, nn.Module, "initialize", make)


def _rate_times_replicas(stack: ExitStack) -> None:
    """The learning rate is scaled with the ranks, as for a mean of means."""

    def make(before: Any) -> Any:
        def wrong(trainer: Trainer, *arguments: Any, **named: Any) -> None:
            before(trainer, *arguments, **named)
            trainer.optimizer.lr = trainer.optimizer.rate * trainer.mesh.world.size

        return wrong

    replaced(stack, Trainer, "__init__", make)


def _loss_not_summed(stack: ExitStack) -> None:
    replaced(stack, Trainer, "sum_losses", lambda before: lambda trainer, local: local)


# -- model parallelism ---------------------------------------------------------------------------------------------
def _moves(kind: type, change: Callable[[Any, Any, Any, Any], Any]) -> Plant:
    """Makes moves of a kind in another way: `change` gets the move, x, the communicator and the right function."""

    def make(before: Any) -> Any:
        def wrong(move: Any, x: Any, comm: Communicator, *arguments: Any) -> Any:
            if isinstance(move, kind) and comm.size > 1:
                return change(move, x, comm, lambda: before(move, x, comm, *arguments))
            return before(move, x, comm, *arguments)

        return wrong

    return lambda stack: replaced(stack, model_axis, "_collective", make)


@primitive(collective=True)
def _self_adjoint(x: Any, *, comm: Communicator) -> Any:
    return comm.all_reduce(x), (lambda g: comm.all_reduce(g),)


@primitive(collective=True)
def _negated_adjoint(x: Any, *, comm: Communicator) -> Any:
    return x, (lambda g: -comm.all_reduce(g),)


def _bias_on_every_rank(stack: ExitStack) -> None:
    def make(before: Any) -> Any:
        def wrong(layer: RowParallelLinear, x: Any) -> Any:
            y = ops.linear(x, layer.weight, layer.bias)
            return model_axis.summed(y, layer.comm.labelled("wrong"))

        return wrong

    replaced(stack, RowParallelLinear, "forward", make)


def _swapped_shards(stack: ExitStack) -> None:
    """A weight's pieces in the reverse order of the ranks; biases as they should be."""

    def make(before: Any) -> Any:
        def wrong(parameter: Any, piece: Any) -> Any:
            at = len(piece) - 1
            length, own = parameter.whole_shape[at], piece[at]
            if len(parameter.whole_shape) > 1 and own.stop - own.start < length:
                piece = (*piece[:at], slice(length - own.stop, length - own.start))
            return before(parameter, piece)

        return wrong

    replaced(stack, split_network, "cut", make)


def _gathered_backwards(move: Any, x: Any, comm: Communicator, right: Callable[[], Any]) -> Any:
    whole = right()
    axis = next(axis for axis in range(len(whole.shape)) if whole.shape[axis] != x.shape[axis])
    order = np.concatenate(np.array_split(np.arange(whole.shape[axis]), comm.size)[::-1])
    return ops.index(whole, index=(*(slice(None),) * axis, order))


def _halo(name: str, keep: Callable[[np.ndarray, int, slice, slice], np.ndarray]) -> Plant:
    """exchange_slices or return_slices, whose result is changed: `keep` gets it, the axis, what is owned and wanted."""

    def make(before: Any) -> Any:
        def wrong(
            comm: Communicator, array: np.ndarray, axis: int, owned: Sequence[slice], wanted: Sequence[slice]
        ) -> np.ndarray:
            result = before(comm, array, axis, owned, wanted)
            return (
                keep(array, axis, owned[comm.rank], wanted[comm.rank])
                if name == "return_slices"
                else _without(result, axis, owned[comm.rank], wanted[comm.rank])
            )

        return wrong

    return lambda stack: replaced(stack, Communicator, name, make)


def _without(result: np.ndarray, axis: int, owned: slice, wanted: slice) -> np.ndarray:
    """Rows of others are zeros."""
    result = np.array(result)
    rows = np.arange(wanted.start, wanted.stop)
    result[(slice(None),) * axis + ((rows < owned.start) | (rows >= owned.stop),)] = 0
    return result


def _only_own(array: np.ndarray, axis: int, owned: slice, wanted: slice) -> np.ndarray:
    """Of the gradients of wanted rows those of the owned: what others have is not added."""
    shape = list(array.shape)
    shape[axis] = owned.stop - owned.start
    result = np.zeros(shape, array.dtype)
    start, stop = max(owned.start, wanted.start), min(owned.stop, wanted.stop)
    before = (slice(None),) * axis
    result[(*before, slice(start - owned.start, stop - owned.start))] = array[
        (*before, slice(start - wanted.start, stop - wanted.start))
    ]
    return result


def _tile_gradients_not_summed(stack: ExitStack) -> None:
    replaced(stack, collectives, "replicate", lambda before: lambda x, comm: x)


def _log_of_ranks(stack: ExitStack) -> None:
    """The sum of exponentials counts P times: log P more."""

    def make(before: Any) -> Any:
        def wrong(logits: Any, *, comm: Communicator, total: float = 1, targets: np.ndarray, **static: Any) -> Any:
            value = before(logits, comm=comm, total=total, targets=targets, **static)
            return ops.add(value, np.log(comm.size) * targets.size / total)

        return wrong

    replaced(stack, split_losses, "split_cross_entropy", make)


def _replicated_counted_again(stack: ExitStack) -> None:
    """In norms each rank counts the weights that all of them have."""
    replaced(stack, Trainer, "_counted_once", lambda before: lambda trainer, squares, parameters: squares)


# -- pipelines -----------------------------------------------------------------------------------------------------
def _sent(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """What stages send forward (SF) or backward (SB) is changed."""

    def make(before: Any) -> Any:
        def wrong(runner: StageRunner, action: Any, array: np.ndarray) -> None:
            before(runner, action, change(array) if action.kind == kind else array)

        return wrong

    return lambda stack: replaced(stack, StageRunner, "_send", make)


def _stale_weights(stack: ExitStack) -> None:
    """From the second step on the first stage's forward has the weights before the last update."""

    def make(before: Any) -> Any:
        def wrong(runner: StageRunner, stage: int, microbatch: int) -> None:
            if stage or runner.comm.size == 1:
                before(runner, stage, microbatch)
                return
            weights = [parameter.data.copy() for parameter in runner.parameters]
            history = runner.__dict__.setdefault("_versions", [])
            if microbatch == 0:
                history.append(weights)
            for parameter, old in zip(runner.parameters, history[max(0, len(history) - 2)]):
                parameter.data[...] = old
            before(runner, stage, microbatch)
            for parameter, new in zip(runner.parameters, weights):
                parameter.data[...] = new

        return wrong

    replaced(stack, StageRunner, "forward", make)


def _weights_never_deferred_back(stack: ExitStack) -> None:
    """The weight gradients of the last microbatch, put off, are forgotten."""

    def make(before: Any) -> Any:
        def wrong(runner: StageRunner, stage: int, microbatch: int) -> None:
            if microbatch < len(runner.microbatches) - 1 or runner.comm.size == 1:
                before(runner, stage, microbatch)

        return wrong

    replaced(stack, StageRunner, "backward_weight", make)


# -- hybrids -------------------------------------------------------------------------------------------------------
def _only_own_summand(stack: ExitStack) -> None:
    """What the other ranks add to the gradient of an owner's activations is forgotten."""

    def make(before: Any) -> Any:
        def wrong(reduction: Reduction) -> np.ndarray:
            before(reduction)
            return reduction._summands[0]

        return wrong

    replaced(stack, Reduction, "wait", make)


def _parts_out_of_place(stack: ExitStack) -> None:
    """The samples of a part are taken for others: for their masks and targets."""

    def make(before: Any) -> Any:
        def wrong(scheme: str, shares: Sequence[int]) -> list[Part]:
            return [dataclasses.replace(part, places=part.places[::-1]) for part in before(scheme, shares)]

        return wrong

    replaced(stack, one_weird_trick, "parts_of", make)


# -- what is left after training -------------------------------------------------------------------------------------
def _scores_out_of_place(stack: ExitStack) -> None:
    """In evaluation the slices of the scores come in another order; training has its own exchange."""
    replaced(
        stack,
        ModelParallel,
        "whole_output",
        lambda before: lambda parallel, output: np.roll(before(parallel, output), 1, axis=-1),
    )


def _test_loss_of_one_rank(stack: ExitStack) -> None:
    """Losses of the test set are those of the first rank's samples."""

    def make(before: Any) -> Any:
        def wrong(trainer: Trainer, tallies: Sequence[Any], samples: int) -> Any:
            for tally in tallies:
                tally.sum_of_losses *= trainer.mesh.world.rank == 0
            return before(trainer, tallies, samples)

        return wrong

    replaced(stack, Trainer, "_evaluation", make)


def _digest_of_own_pieces(stack: ExitStack) -> None:
    """Rows that other ranks have are left out of the digest."""

    def make(before: Any) -> Any:
        def wrong(parallel: ModelParallel, name: str, array: np.ndarray) -> Iterator[np.ndarray]:
            for _ in before(parallel, name, array):
                pass
            yield array

        return wrong

    replaced(stack, ModelParallel, "_rows", make)


def _loaded_by_one_rank(stack: ExitStack) -> None:
    """The last rank keeps its weights when others are loaded."""

    def make(before: Any) -> Any:
        def wrong(parallel: ModelParallel, state: Any) -> None:
            if parallel.comm.rank < parallel.comm.size - 1 or parallel.comm.size == 1:
                before(parallel, state)

        return wrong

    replaced(stack, ModelParallel, "load_state_dict", make)


def _updates_by_replica(stack: ExitStack) -> None:
    """Every replica's share counts as an update: masks and rates run ahead in the next step."""

    def make(before: Any) -> Any:
        def wrong(trainer: Trainer) -> float:
            scale = before(trainer)
            trainer.updates += trainer.mesh.data.size - 1
            return scale

        return wrong

    replaced(stack, Trainer, "update", make)


# -- the list ------------------------------------------------------------------------------------------------------
def _fully() -> nn.Module:
    return nn.Sequential(
        fc1=nn.Linear(12, 10),
        act1=nn.Tanh(),
        drop=nn.Dropout(0.3),
        fc2=nn.Linear(10, 8),
        act2=nn.Tanh(),
        fc3=nn.Linear(8, 9),
        act3=nn.Tanh(),
        fc4=nn.Linear(9, 6),
    )


def _images() -> nn.Module:
    return nn.Sequential(
        conv1=nn.Conv2d(2, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        act1=nn.Tanh(),
        conv2=nn.Conv2d(4, 6, 3, padding=1),
        act2=nn.Tanh(),
        pool=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(54, 6),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fully": (_fully, (12,)),
    "clipped": (_fully, (12,)),
    "images": (_images, (2, 6, 6)),
}
_DP = Layout(dp=2, microbatches=2)
_OUTPUT = Layout(mp=2, split={"fc1": "output:whole", "fc2": "output:whole", "fc3": "output:whole", "fc4": "output"})
_PAIRS = Layout(mp=2, split={"fc2": "output", "fc3": "input"})
_FILTERS = Layout(mp=2, split={"conv1": "filters", "conv2": "filters"})
_ROWS = Layout(mp=2, split={"features": "rows"})
_PIPE = Layout(pp=2, microbatches=3, schedule="1f1b")
_HYBRID = Layout(dp=2, hybrid="owt", scheme="c")
_ZERO_BUBBLE = Layout(pp=2, microbatches=3, schedule="zb-h1")

MUTANTS: tuple[Mutant, ...] = (
    Mutant("loss divided by the share's size", "fully", _DP, _batches(_divide_by_share), ("own share",)),
    Mutant(
        "gradients averaged over replicas", "fully", _DP, _local_gradients(lambda r: 1 / r.comm.size), ("divided by 2",)
    ),
    Mutant("gradients counted once per replica", "fully", _DP, _local_gradients(lambda r: r.comm.size), ("2 times",)),
    Mutant("gradient all-reduce dropped", "fully", _DP, _no_all_reduce, ("missing reduction over the replicas",)),
    Mutant("one rank's gradients negated", "fully", _DP, _local_gradients(lambda r: 1 - 2 * _rank()), ("-1 times",)),
    Mutant("data shard off by one", "fully", _DP, _batches(_next_samples), ("data shard out of place",)),
    Mutant("targets of the next sample", "fully", _DP, _batches(_swapped_samples), ("it has targets",)),
    Mutant("gradients not accumulated", "fully", _DP, _only_last_microbatch, ("not accumulated",)),
    Mutant("microbatch loss not scaled", "fully", _DP, _microbatch_is_batch, ("size of the microbatch",)),
    Mutant("loss not summed over replicas", "fully", _DP, _loss_not_summed, ("not summed over the ranks",)),
    Mutant("learning rate times replicas", "fully", _DP, _rate_times_replicas, ("the update 2 times",)),
    Mutant("batch norm unsynchronised", "images", _DP, _local_batch_norm, ("batch norm statistics",)),
    Mutant("dropout masks by rank", "fully", _DP, _masks_by_rank, ("dropout mask",)),
    Mutant("dropout samples counted from 0 on each rank", "fully", _DP, _masks_by_share, ("dropout mask",)),
    Mutant("another seed on one rank", "fully", _PIPE, _seed_by_rank, ("seed",)),
    Mutant(
        "all-reduce dropped forward",
        "fully",
        _PAIRS,
        _moves(AllReduce, lambda move, x, comm, right: x),
        ("missing reduction",),
    ),
    Mutant(
        "all-reduce dropped backward",
        "fully",
        _OUTPUT,
        _moves(Replicate, lambda move, x, comm, right: x),
        ("missing reduction in backward",),
    ),
    Mutant(
        "self-adjoint all-reduce",
        "fully",
        _PAIRS,
        _moves(AllReduce, lambda move, x, comm, right: _self_adjoint(x, comm=comm)),
        ("counted 2 times",),
    ),
    Mutant(
        "sign of an adjoint",
        "fully",
        _OUTPUT,
        _moves(Replicate, lambda move, x, comm, right: _negated_adjoint(x, comm=comm)),
        ("wrong sign",),
    ),
    Mutant("bias on every rank", "fully", _PAIRS, _bias_on_every_rank, ("bias added 2 times",)),
    Mutant("shards swapped", "fully", _OUTPUT, _swapped_shards, ("shard out of place",)),
    Mutant("gathered in the wrong order", "fully", _OUTPUT, _moves(Unshard, _gathered_backwards), ("out of place",)),
    Mutant("channels gathered in the wrong order", "images", _FILTERS, _moves(Gather, _gathered_backwards), ("place",)),
    Mutant("halo row missing", "images", _ROWS, _halo("exchange_slices", _only_own), ("halo rows missing",)),
    Mutant("halo gradients not returned", "images", _ROWS, _halo("return_slices", _only_own), ("halo rows",)),
    Mutant("tiles' weight gradients not summed", "images", _ROWS, _tile_gradients_not_summed, ("missing reduction",)),
    Mutant("log P in a split cross-entropy", "fully", _OUTPUT, _log_of_ranks, ("log 2",)),
    Mutant("replicated weights counted P times in the norm", "clipped", _PAIRS, _replicated_counted_again, ("norm",)),
    Mutant("stale weights in 1F1B", "fully", _PIPE, _stale_weights, ("earlier version",)),
    Mutant("activation of zeros", "fully", _PIPE, _sent("SF", np.zeros_like), ("nothing arrived",)),
    Mutant("gradient of a boundary negated", "fully", _PIPE, _sent("SB", np.negative), ("wrong sign",)),
    Mutant("samples of a boundary reversed", "fully", _PIPE, _sent("SF", lambda a: a[::-1].copy()), ("another order",)),
    Mutant(
        "deferred weight gradients forgotten", "fully", _ZERO_BUBBLE, _weights_never_deferred_back, ("accumulated",)
    ),
    Mutant("scores gathered in another order", "fully", _OUTPUT, _scores_out_of_place, ("output in evaluation mode",)),
    Mutant("test loss of one rank", "fully", _DP, _test_loss_of_one_rank, ("test loss",)),
    Mutant("digest of a rank's own pieces", "fully", _PAIRS, _digest_of_own_pieces, ("not the digest",)),
    Mutant("weights not loaded by one rank", "fully", _PAIRS, _loaded_by_one_rank, ("load_state_dict",)),
    Mutant(
        "updates counted once per replica", "fully", _DP, _updates_by_replica, ("dropout mask", "number of updates")
    ),
    Mutant("hybrid: a rank's own summand only", "images", _HYBRID, _only_own_summand, ("gradient of the output of",)),
    Mutant("hybrid: parts taken for others", "images", _HYBRID, _parts_out_of_place, ("loss",)),
)


def mutants_of(name: str | None, among: Sequence[Mutant] = MUTANTS) -> Sequence[Mutant]:
    """The mutant of this name, or all of them; InputError for an unknown name."""
    named = {mutant.name: mutant for mutant in among}
    if name is not None and name not in named:
        raise unknown_name("--mutant", name, list(named))
    return among if name is None else [named[name]]


def experiments() -> dict[str, Experiment]:
    """What the mutants are planted in: two steps of two small networks that have something of everything."""
    return {
        name: synthetic_experiment(build, shape, 6, 10, steps=2, clip_norm=0.1 if name == "clipped" else None)
        for name, (build, shape) in NETWORKS.items()
    }


def verdicts(comm: Communicator, mutants: Iterable[Mutant] = MUTANTS) -> Iterator[Verdict | None]:
    """Plants each mutant on the 2 ranks of `comm`, all together; a Verdict on rank 0, None on the other."""
    what = experiments()
    references: dict[tuple[str, int], tuple[Reference, dict[int, Trace]]] = {}
    right: dict[tuple[str, str], bool] = {}  # (network, layout) -> whether it is, without a bug
    for mutant in mutants:
        experiment, layout = what[mutant.network], mutant.layout
        key = mutant.network, layout.microbatches
        reference = None
        if comm.rank == 0:
            if key not in references:
                alone = Layout(microbatches=layout.microbatches)
                traces = {step: trace(experiment, alone, Mesh.serial(), step) for step in range(experiment.steps)}
                references[key] = reference_of(experiment, layout.microbatches), traces
            reference = references[key]
        pair = mutant.network, str(layout)
        if pair not in right:
            mesh = Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp)
            cell = verify_one(mutant.network, experiment, layout, mesh, reference and reference[0])
            right[pair] = comm.broadcast_object(cell is None or cell.equal)
            mesh.free()
        if right[pair]:
            yield _verdict(comm, mutant, experiment, reference)
        else:
            said = f"{mutant.network}, {layout}: different also without the bug"
            yield Verdict(mutant.name, False, False, said, None) if comm.rank == 0 else None


def _verdict(
    comm: Communicator, mutant: Mutant, experiment: Experiment, reference: tuple[Reference, dict[int, Trace]] | None
) -> Verdict | None:
    layout = mutant.layout
    mesh = Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp)
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


def noise_of_mutants(comm: Communicator) -> float:
    """The noise floor of what mutants are planted in, computed by rank 0, on all ranks."""
    floors = [0.0]
    if comm.rank == 0:
        floors = [reference_of(experiment, 2).noise or 0.0 for experiment in experiments().values()]
    return comm.broadcast_object(max(floors))

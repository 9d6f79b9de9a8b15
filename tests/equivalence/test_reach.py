"""What `verify` covers beyond one update with the whole batch and plain layouts: each is right, or caught."""

import dataclasses
from contextlib import ExitStack

import numpy as np
import pytest

from parallel_dl import checkpoint, evaluation, nn, optim, trainer
from parallel_dl.autograd import ops, primitive
from parallel_dl.data_parallel import gradients
from parallel_dl.data_parallel.buckets import Bucket
from parallel_dl.datasets import Loader
from parallel_dl.engine import Engine
from parallel_dl.equivalence import record, synthetic_experiment, verify
from parallel_dl.equivalence.checks import counted, movements
from parallel_dl.equivalence.checks.counted import wrong_count
from parallel_dl.equivalence.checks.fitted import wrong_fit
from parallel_dl.equivalence.checks.movements import wrong_movement
from parallel_dl.equivalence.mutants import replaced
from parallel_dl.equivalence.runs.kept import Kept, key_of
from parallel_dl.equivalence.runs.replayed import program_of
from parallel_dl.equivalence.runs.variable_batch import places_of_parts
from parallel_dl.equivalence.specimens.layouts import covering_set, layouts_of
from parallel_dl.equivalence.specimens.networks import SPECIMENS, network_named, require_known
from parallel_dl.equivalence.specimens.variations import two_groups
from parallel_dl.equivalence.verify import moved
from parallel_dl.errors import InputError
from parallel_dl.hybrid import one_weird_trick
from parallel_dl.layout import Layout
from parallel_dl.mesh import Move, Partial
from parallel_dl.model_parallel import ModelParallel, linear
from parallel_dl.mpi import Communicator, Ledger, Mesh, collectives
from parallel_dl.nn import BatchNorm2d
from parallel_dl.pipeline_parallel import PipelineParallel
from parallel_dl.pipeline_parallel.stash import WeightStash
from parallel_dl.splits import Plan
from parallel_dl.trainer import Trainer

SHAPE = (2, 6, 5)
STASHING = Layout(pp=2, microbatches=3, schedule="pipedream", stages=["fc2"])
VARIABLE = Layout(dp=2, hybrid="owt", scheme="c", variable_batch=True)
REPLICAS = Layout(dp=2, microbatches=2)
PIPE = Layout(pp=2, microbatches=2)
COLUMNS = Layout(mp=2, split={"features": "columns", "classifier": "output"})


def experiment(name, batch_size=8, make=None):
    return synthetic_experiment(lambda: network_named(name, SHAPE, 4), SHAPE, 4, batch_size, 2, make_optimizer=make)


def cells(comm, *tasks, make=None):
    """(equal, quantity that is worst) of each (specimen, layout), on every rank."""
    found = verify(comm, {name: experiment(name, make=make) for name, _ in tasks}, tasks)
    return comm.broadcast_object([cell and (cell.equal, cell.worst["quantity"]) for cell in found])


@pytest.mark.ranks(2)
def test_specimens(comm):
    """One of each kind; the second is in checked mode. `verify --all` has hundreds."""
    tasks = [("residual", COLUMNS), ("inception", VARIABLE), ("norms", STASHING), ("local_norm", REPLICAS)]
    assert [equal for equal, _ in cells(comm, *tasks)] == [True] * 4


def lars(parameters):
    return optim.LARS(parameters, 1.0, weight_decay=1e-3)


@pytest.mark.ranks(2)
def test_a_training_that_diverges_has_equal_replicas(comm, recwarn):
    """Losses that are no numbers are the same on all ranks, and nothing is printed of overflow."""
    what = experiment("norms", make=lambda parameters: optim.SGD(parameters, 1e150, momentum=0.9))
    for cell in verify(comm, {"norms": what}, [("norms", STASHING)]):
        if comm.rank == 0:
            assert cell.worst["quantity"] != "replicas", cell
            assert "not finite" in cell.note
    assert not recwarn.list


@pytest.mark.ranks(2)
@pytest.mark.parametrize("make", [lambda p: optim.Adam(p, 1e-2), pytest.param(lars, marks=pytest.mark.grid)])
def test_programs_of_their_own_with_other_optimizers(comm, make):
    tasks = [("inception", STASHING), ("inception", VARIABLE), ("local_norm", REPLICAS)]
    assert [equal for equal, _ in cells(comm, *tasks, make=make)] == [True] * 3


@pytest.mark.ranks(2)
def test_variable_batch_with_groups_of_parameters(comm):
    """The optimizer's order is not that of the network, and each group has a policy."""
    what = two_groups(experiment("inception"))
    (cell,) = verify(comm, {"inception": what}, [("inception", VARIABLE)])
    assert cell is None or cell.equal


def wrongly(owner, name, change):
    """Plants a function in place of owner.name; `change` gets the right one, and returns the wrong one."""

    def plant(stack):
        replaced(stack, owner, name, change)

    return plant


def newest_weights(before):
    """Backward passes meet the weights as they are, not those of their forward pass."""
    return lambda runner, version: before(runner, runner.version)


def counted_in_the_batch(before):
    """Each microbatch divides by the size of the batch, though it should count as a batch of its own."""
    return lambda batch: list(batch.microbatches)


def no_average(before):
    return lambda layers, comm: None


def sum_for_mean(before):
    def wrong(layers, comm):
        before(layers, comm)
        for layer in layers:
            layer.running_mean *= comm.size

    return wrong


def next_scheme(before):
    return lambda scheme, shares: before("b", shares)


def not_sent(before):
    """A bucket is taken for complete when it has left."""

    def start(bucket, comm):
        before(bucket, comm)
        bucket.pending.wait()
        bucket._total[...] = bucket._local

    return start


def first_half(before):
    """Of what is loaded a rank takes another's piece: here, all weights in the reverse order."""
    return lambda network, state: before(
        network, {name: np.ascontiguousarray(a[()][::-1]) for name, a in state.items()}
    )


def of_training(before):
    """Dropout and batch norm as in training."""

    def wrong(trainer, x):
        trainer.network.train(trainer.mesh.world.size > 1)
        return before(trainer, x)

    return wrong


def accuracy_of_a_share(before):
    def wrong(engine, tallies, samples):
        found = before(engine, tallies, samples)
        return dataclasses.replace(found, accuracy=found.accuracy / engine.mesh.world.size)

    return wrong


def reversed_rows(before):
    """What would be saved, on the first rank."""

    def wrong(divided):
        state = before(divided)
        return state and {name: np.ascontiguousarray(array[::-1]) for name, array in state.items()}

    return wrong


def from_the_start(before):
    """Each rank reads the first slice of a file."""
    return lambda stored, piece: before(stored, tuple(slice(0, part.stop - part.start) for part in piece))


def constant(before):
    return lambda *arguments: "0" * 64


@pytest.mark.sampled(2)
@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("name", "layout", "plant"),
    [
        ("norms", STASHING, wrongly(WeightStash, "using", newest_weights)),
        ("norms", STASHING, wrongly(trainer, "as_batches", counted_in_the_batch)),
        ("inception", VARIABLE, wrongly(one_weird_trick, "sub_batches", next_scheme)),
        ("local_norm", REPLICAS, wrongly(gradients, "average_running_statistics", no_average)),
        ("local_norm", REPLICAS, wrongly(gradients, "average_running_statistics", sum_for_mean)),
        ("norms", REPLICAS, wrongly(Bucket, "start", not_sent)),
        ("inception", COLUMNS, wrongly(ModelParallel, "load_state_dict", first_half)),
        ("inception", PIPE, wrongly(PipelineParallel, "load_state_dict", first_half)),
        ("inception", REPLICAS, wrongly(Engine, "outputs", of_training)),
        ("inception", PIPE, wrongly(evaluation, "_summed", accuracy_of_a_share)),
        ("inception", COLUMNS, wrongly(ModelParallel, "sha256", constant)),
        ("inception", COLUMNS, wrongly(ModelParallel, "gather_state", reversed_rows)),
        ("inception", PIPE, wrongly(PipelineParallel, "gather_state", reversed_rows)),
        ("inception", COLUMNS, wrongly(checkpoint.Stored, "__getitem__", from_the_start)),
    ],
)
def test_planted_errors_are_seen(comm, name, layout, plant):
    with ExitStack() as stack:
        plant(stack)
        ((equal, _),) = cells(comm, (name, layout))
    assert not equal


@pytest.mark.ranks(2)
def test_every_third_layout_is_checked_and_counted(comm):
    seen = []

    def note(before):
        def enter(trainer, *arguments, **named):
            before(trainer, *arguments, **named)
            if trainer.mesh.world.size > 1:
                seen.append((trainer.mesh.world.checked, trainer.mesh.world.ledger is not None))

        return enter

    with ExitStack() as stack:
        replaced(stack, Trainer, "__init__", note)
        cells(Communicator(comm.mpi, checked=False), ("norms", PIPE), ("norms", PIPE))
    assert seen == [(False, False), (True, True)]


# -- fit -----------------------------------------------------------------------------------------------------------
def one_less(before):
    return lambda *arguments: before(*arguments) - 1


def one_epoch(before):
    return lambda layout, samples, batch_size, epochs=1, steps=None: before(layout, samples, batch_size, 1, steps)


def another_order(before):
    return lambda loader, epoch: before(loader, epoch + 1)


def own_losses(before):
    """Each rank's own summands."""

    def wrong(trainer, local):
        return before(trainer, local) if len(local) == 1 else local

    return wrong


@pytest.mark.ranks(2)
def test_fit(comm):
    """It makes the updates that were compared, also across epochs; a wrong order, number or sum is reported."""
    what, layout = dataclasses.replace(experiment("norms"), steps=4), Layout(dp=2)
    mesh = Mesh(comm, data=2)
    run = record(what, layout, mesh)
    assert wrong_fit(what, layout, mesh, run) is None
    for owner, name, wrong, said in (
        (Layout, "updates", one_less, "Trainer.fit, which has 3 losses for 4 updates,"),
        (Layout, "updates", one_epoch, "Trainer.fit, which would make 3 updates in two epochs, not 6,"),
        (Loader, "epoch", another_order, "Trainer.fit, whose losses are "),
        (Trainer, "sum_losses", own_losses, "Trainer.fit, whose losses are "),
    ):
        with ExitStack() as stack:
            replaced(stack, owner, name, wrong)
            found = wrong_fit(what, layout, mesh, run)
        assert found.startswith(said)
    mesh.free()


@pytest.mark.ranks(2)
def test_every_third_layout_is_trained_by_fit(comm):
    with ExitStack() as stack:
        replaced(stack, Layout, "updates", one_less)
        found = cells(comm, *[("norms", PIPE)] * 3)
    assert [equal for equal, _ in found] == [True, True, False]


# -- the movements themselves --------------------------------------------------------------------------------------
@pytest.mark.ranks(2, 4)
def test_movements(comm):
    assert wrong_movement(comm) is None


@pytest.mark.ranks(2)
def test_movements_are_checked_and_counted(comm):
    seen = []

    def note(before):
        def enter(self, array, root=0, op="sum"):
            seen.append((self.checked, self.ledger is not None and self.ledger.is_counting))
            return before(self, array, root, op)

        return enter

    with ExitStack() as stack:
        replaced(stack, Communicator, "reduce", note)
        cell = moved(Communicator(comm.mpi, checked=False))
    assert set(seen) == {(True, True)}
    assert cell is None if comm.rank else cell.equal


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        (
            "shift",
            lambda before: lambda x, comm, offset, cyclic: before(x, comm, offset + 1, cyclic),
            "shift by 1: gives",
        ),
        (
            "scatter",
            lambda before: lambda x, comm, *rest: ops.multiply(before(x, comm, *rest), 2.0),
            "scatter along axis 0: gives",
        ),
        ("broadcast", lambda before: lambda x, comm, root: one_way(x, comm=comm, root=root), "broadcast: "),
    ],
)
def test_a_wrong_movement_is_named(comm, name, wrong, said):
    with ExitStack() as stack:
        replaced(stack, collectives, name, wrong)
        assert wrong_movement(comm).startswith(said)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        (
            "all_gather",
            lambda before: (
                lambda self, array, axis=0, sizes=None: before(self, array, axis, sizes)[:: 1 if sizes is None else -1]
            ),
            "shard along axis 0: backward",
        ),
        (
            "all_reduce",
            lambda before: lambda self, array, op="sum", out=None: before(self, array, op),
            "all_reduce into another array (float64)",
        ),
        (
            "_all_reduce",
            lambda before: lambda self, array, op, out: 2 * before(self, array, op, out),
            "all_reduce (max, float64)",
        ),
        (
            "isend",
            lambda before: (
                lambda self, array, destination, tag=0: before(self, array, destination, {3: 4, 4: 3}.get(tag, tag))
            ),
            "isend, ireceive",
        ),
        (
            "reduce",
            lambda before: lambda self, array, root=0, op="sum": before(self, array, root, "sum"),
            "reduce (prod, float64)",
        ),
    ],
)
def test_a_wrong_call_is_named(comm, name, wrong, said):
    with ExitStack() as stack:
        replaced(stack, Communicator, name, wrong)
        assert wrong_movement(Communicator(comm.mpi, checked=False)).startswith(said)


@pytest.mark.ranks(2)
def test_a_wrong_layer_made_by_hand_is_named(comm):
    with ExitStack() as stack:
        replaced(stack, linear, "reshard", lambda before: lambda a, b, x: () if a.has(Partial) else before(a, b, x))
        assert wrong_movement(comm).startswith("RowParallelLinear, of split input: gives another")


@pytest.mark.ranks(2)
def test_a_wrong_split_loss_is_named(comm):
    with ExitStack() as stack:
        always = lambda before: lambda *split: lambda x, y, total: before(*split)(x, y, 9)  # noqa: E731
        replaced(stack, movements, "split_loss", always)
        assert wrong_movement(comm).startswith("cross_entropy of split scores, with the mean: is not")


@primitive(collective=True)
def one_way(x, *, comm, root):
    """A broadcast whose backward forgets the other ranks."""
    return comm.broadcast(x, root), (lambda g: g,)


# -- serial runs that are kept -------------------------------------------------------------------------------------
def test_layouts_with_one_serial_run_share_it(tmp_path):
    inception, local = (network_named(name, SHAPE, 4) for name in ("inception", "local_norm"))
    stages = [dataclasses.replace(STASHING, stages=None, dp=dp) for dp in (1, 2)]
    assert len({key_of("inception", inception, layout) for layout in stages}) == 1
    assert (
        len({key_of("inception", inception, layout) for layout in (PIPE, REPLICAS, Layout(mp=4, microbatches=2))}) == 1
    )
    assert len({key_of("local_norm", local, layout) for layout in (PIPE, REPLICAS, Layout(dp=3, microbatches=2))}) == 3
    made = []
    for _ in range(2):  # two jobs
        kept = Kept(tmp_path)
        for _ in range(2):
            assert kept.get(("inception", None, 2), lambda: made.append(1) or "a serial run") == "a serial run"
    assert made == [1]
    Kept().get(("inception", None, 2), lambda: made.append(1))
    assert made == [1, 1]


# -- which layouts -------------------------------------------------------------------------------------------------
def networks():
    return {name: (network_named(name, (2, 9, 8), 10), (2, 9, 8)) for name in ("mlp_deep", "vgg_small", *SPECIMENS)}


def test_the_covering_set():
    """Every specimen, prime numbers of ranks, tiles in rows and columns, splits beside replicas and beside stages."""
    found = {ranks: covering_set(ranks, networks()) for ranks in range(1, 9)}
    for tasks in found.values():
        assert len(tasks) == len({(name, str(layout)) for name, layout in tasks})
    assert {name for name, _ in found[4]} == {*SPECIMENS, "mlp_deep", "vgg_small"}
    assert {name for ranks in (5, 7) for name, _ in found[ranks]} == {"mlp_deep", "inception"}
    four = [layout for _, layout in found[4]]
    assert [layout.mp for layout in four].count(2) > 20
    assert any(layout.mp == 4 and layout.split == {"features": "rows-columns"} for layout in four)
    assert any(layout.split and layout.dp == 2 for layout in four)
    assert any(layout.split and layout.pp == 2 for layout in four)
    for ranks in (2, 3, 4, 8):
        assert any("samples" in (layout.split or {}).values() for _, layout in found[ranks])
    two = [(name, layout.split) for name, layout in found[2]]
    for name, split in (
        ("norms", {"flatten": "samples"}),
        ("residual", {"features": "samples", "classifier": "output"}),
        ("groups", {"fc1": "input", "act3": "samples"}),
    ):
        assert (name, split) in two
    assert {layout.schedule for layout in four} > {"pipedream", "zb-h1"}
    assert any(layout.variable_batch for layout in four)
    assert any(layout.reproducible and layout.mp == layout.pp == 2 for layout in four)


def test_layouts_that_cannot_be_are_left_out():
    network = network_named("local_norm", SHAPE, 4)
    assert not any(layout.variable_batch for layout in layouts_of(2, network, SHAPE)), "batch norm"
    assert not any(layout.reproducible for layout in layouts_of(4, network, SHAPE, reproducible=True)), "batch norm"
    assert not any(layout.dp > 1 and layout.schedule == "pipedream" for layout in layouts_of(4, network, SHAPE))
    assert any(
        layout.dp > 1 and layout.schedule == "pipedream"
        for layout in layouts_of(4, network_named("inception", SHAPE, 4), SHAPE)
    )


# -- the serial programs -------------------------------------------------------------------------------------------
def test_parts_of_a_variable_batch():
    assert places_of_parts("b", 2, 5) == [[0, 1, 2], [3, 4]]
    assert places_of_parts("c", 2, 5) == [[0, 1, 3], [2, 4]]
    assert places_of_parts("c", 3, 2) == [[0, 1], [], []]


@pytest.mark.parametrize(
    ("layout", "program"),
    [
        (Layout(dp=2), "local batch norm"),
        (Layout(mp=2), None),
        (Layout(pp=2, schedule="zb-h1"), None),
        (STASHING, "weight stashing"),
    ],
)
def test_which_program(layout, program):
    assert program_of(network_named("local_norm", SHAPE, 4), layout) == program


@pytest.mark.parametrize(
    ("network", "layout", "words"),
    [
        ("local_norm", Layout(dp=2, pp=2, schedule="pipedream"), "schedule pipedream: cannot be compared with local"),
        ("residual", VARIABLE, "variable_batch: cannot be compared for networks with batch norm"),
        (None, Layout(dp=2), "batch norm with both local and global statistics"),
    ],
)
def test_without_a_program(network, layout, words):
    mixed = nn.Sequential(BatchNorm2d(2), BatchNorm2d(2, statistics="local"))
    with pytest.raises(InputError, match=words):
        program_of(mixed if network is None else network_named(network, SHAPE, 4), layout)


def test_an_unknown_network():
    with pytest.raises(InputError, match="did you mean 'residual'"):
        require_known("residul")


# -- what is sent --------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
def test_ranks_send_what_is_planned(comm):
    """In float32, too; and a plan that forgets what goes back is seen."""
    mesh = Mesh(Communicator(comm.mpi, checked=False, ledger=Ledger()), model=2)
    small = synthetic_experiment(lambda: network_named("residual", SHAPE, 4), SHAPE, 4, dtype="float32")
    assert wrong_count(small, COLUMNS, mesh) is None
    for split in (
        {"conv1": "samples"},
        {"features": "samples", "classifier": "output"},
        {"fc1": "input", "act3": "samples"},
    ):
        assert wrong_count(small, Layout(mp=2, split=split), mesh) is None
    assert wrong_count(experiment("inception"), Layout(mp=2), mesh) is None
    with ExitStack() as stack:
        replaced(
            stack,
            Move,
            "messages",
            lambda before: lambda move, *given: () if move.name == "all_reduce" else before(move, *given),
        )
        said = wrong_count(experiment("inception"), Layout(mp=2, split={"classifier": "input"}), mesh)
    assert "fc1 forward all_reduce: counted" in said
    mesh.free()


@pytest.mark.ranks(2)
def test_hybrids_send_and_ranks_hold_what_is_planned(comm):
    """And targets that are forgotten, or a weight that is counted once too often, are seen."""
    ranks = Communicator(comm.mpi, checked=False, ledger=Ledger())
    replicas, shared = Mesh(ranks, data=2), Mesh(ranks, model=2)
    hybrid = Layout(dp=2, hybrid="owt", scheme="b")
    what = experiment("inception")
    assert wrong_count(what, hybrid, replicas) is None
    with ExitStack() as stack:
        forget = lambda before: lambda *given: dataclasses.replace(before(*given), targets=0)  # noqa: E731
        replaced(stack, counted, "traffic", forget)
        said = wrong_count(what, hybrid, replicas)
    assert said.startswith("on rank 0: what is sent: targets forward: 32 bytes, planned 0"), said
    with ExitStack() as stack:
        replaced(stack, Plan, "parameters", lambda before: lambda plan, rank: before(plan, rank) + 1)
        said = wrong_count(what, COLUMNS, shared)
    assert said.startswith("on rank 0: what is held: "), said
    replicas.free()
    shared.free()

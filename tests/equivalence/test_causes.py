"""What a difference is said to come from is true: bugs that look alike are told apart, and nothing is said in doubt."""

import dataclasses

import numpy as np
import pytest

from parallel_dl import nn, optim, partition
from parallel_dl.autograd import ops
from parallel_dl.equivalence import (
    Experiment,
    assert_equivalent,
    first_divergence,
    record,
    synthetic_experiment,
)
from parallel_dl.equivalence.explain import causes, layer_causes
from parallel_dl.equivalence.explain.pieces import relative
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Mesh, collectives, one_rank, world
from parallel_dl.splits import convolution as split_convolution
from parallel_dl.trainer import Trainer

SERIAL = Layout()
ALONE = {2: (False, False), 3: (False, False)}


def images():
    return nn.Sequential(
        conv1=nn.Conv2d(2, 4, 3, padding=1),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(4, 4, 3, padding=1),
        flatten=nn.Flatten(),
        fc=nn.Linear(4 * 8 * 8, 5),
    )


def fully():
    layers = [layer for _ in range(3) for layer in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(6, 5))


def divergence(comm, build, shape, layout, steps=2, bound=None, **others):
    """The first difference; on every rank."""
    what = synthetic_experiment(build, shape, 5, batch_size=7, steps=steps)
    assert isinstance(what, Experiment)
    what = dataclasses.replace(what, **others)
    mesh = Mesh(comm, data=layout.dp, model=layout.mp, pipe=layout.pp)
    serial = None
    if comm.rank == 0:
        with one_rank():
            serial = record(what, Layout(microbatches=layout.microbatches))
    found = first_divergence(what, layout, mesh, serial, record(what, layout, mesh), bound=bound)
    mesh.free()
    return comm.broadcast_object(found)


def cause(comm, build, shape, layout):
    """The kind of the first difference and its reported cause; on every rank."""
    found = divergence(comm, build, shape, layout)
    return found and (found.kind, found.cause)


# -- weights before a step -----------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
def test_a_wrong_root_of_a_broadcast_is_no_other_seed(comm, monkeypatch):
    right = Communicator.broadcast

    def of_another(self, array, root=0, shape=None, dtype=None):
        if shape is None:
            return right(self, array, root, shape, dtype)
        other = (root + 1) % self.size
        return right(self, np.full(shape, 0.5, dtype) if self.rank == other else array, other, shape, dtype)

    monkeypatch.setattr(Communicator, "broadcast", of_another)
    kind, said = cause(comm, fully, (6,), Layout(pp=2, microbatches=2))
    assert kind == "weights before"
    assert "gathered wrongly" in said
    assert "seed" not in said


@pytest.mark.ranks(2)
def test_pieces_put_together_in_the_wrong_order_are_no_other_seed(comm, monkeypatch):
    right = Trainer.state_dict

    def reversed_rows(trainer):
        state = right(trainer)
        return {name: array[::-1].copy() if name == "2.weight" else array for name, array in state.items()}

    if comm.rank == 1:
        monkeypatch.setattr(Trainer, "state_dict", reversed_rows)
    kind, said = cause(comm, fully, (6,), Layout(mp=2))
    assert kind == "weights before"
    assert "gathered wrongly" in said


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("value", "says"), [(None, "another seed"), (0.0, "never filled")])
def test_other_weights_of_one_rank_are_told(comm, monkeypatch, value, says):
    right = nn.Module.initialize

    def otherwise(network, seed=0, *arguments, **named):
        network = right(network, seed + (world().rank if value is None else 0), *arguments, **named)
        if value is not None and world().rank:
            for parameter in network.parameters():
                parameter.data[...] = value
        return network

    monkeypatch.setattr(nn.Module, "initialize", otherwise)
    kind, said = cause(comm, fully, (6,), Layout(pp=2, microbatches=2))
    assert kind == "weights before"
    assert says in said


def test_a_buffer_has_no_seed():
    assert "seed" not in causes.of_weights(np.array([1.0, 7.0]), np.array([1.0, 2.0]), SERIAL, True, is_buffer=True)


# -- borders -------------------------------------------------------------------------------------------------------
def whole():
    return np.random.default_rng(2).standard_normal((3, 2, 6, 5))


def with_wrong_rows(*rows):
    got = whole()
    got[:, :, list(rows)] += 1
    return got


@pytest.mark.parametrize(
    ("got", "edges", "says"),
    [
        (with_wrong_rows(0), ALONE, "a wrong padding: only rows [0]"),
        (with_wrong_rows(0, 5), ALONE, "a wrong padding: only rows [0, 5]"),
        (with_wrong_rows(0), {2: (True, False), 3: (False, False)}, "halo rows missing: only rows [0]"),
        (with_wrong_rows(5), {2: (True, False), 3: (False, False)}, "a wrong padding: only rows [5]"),
        (with_wrong_rows(0, 5), {2: (True, False), 3: (False, False)}, "halo rows missing, or a wrong padding"),
        (np.roll(whole(), 1, axis=2), ALONE, "rows shifted by 1"),
        (np.roll(whole(), -2, axis=3), ALONE, "columns shifted by 2"),
        (with_wrong_rows(2), ALONE, None),
        (with_wrong_rows(0, 1, 2, 3, 4, 5), ALONE, None),
    ],
)
def test_borders(got, edges, says):
    said = layer_causes.of_forward(nn.Conv2d(2, 2, 3), {0: (got, whole())}, 0, [0], {}, "conv", SERIAL, edges)
    assert (said is None) if says is None else said.startswith(says)


def swapped(padding):
    return tuple((after, before) for before, after in padding)


def wider(padding):
    return tuple((before + after, 0) for before, after in padding)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("wrong", [swapped, wider])
def test_a_wrong_padding_is_no_layer_that_mixes_samples(comm, monkeypatch, wrong):
    right = split_convolution.convolve
    monkeypatch.setattr(split_convolution, "convolve", lambda *given, padding: right(*given, padding=wrong(padding)))
    layout = Layout(dp=comm.size // 2, mp=2, split={"conv1": "rows", "conv2": "rows"})
    kind, said = cause(comm, images, (2, 8, 8), layout)
    assert kind == "forward"
    assert "padding" in said
    assert "mixes" not in said


@pytest.mark.ranks(2)
def test_a_wrong_padding_on_one_replica(comm, monkeypatch):
    right = nn.Conv2d.forward

    def of_ones(layer, x):
        y = right(layer, x)
        if world().rank == 1:
            y.data[:, :, 0] += 1
        return y

    monkeypatch.setattr(nn.Conv2d, "forward", of_ones)
    kind, said = cause(comm, images, (2, 8, 8), Layout(dp=2))
    assert kind == "forward"
    assert said.startswith("a wrong padding: only rows [0]")


# -- layers that mix samples ---------------------------------------------------------------------------------------
class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(axis=0, keepdims=True)


class Wrong(nn.Module):
    """Not of the samples that it is given, but of the rank."""

    def forward(self, x):
        return x + np.sin(np.arange(6.0)) * world().rank


@pytest.mark.ranks(2)
def test_a_layer_that_mixes_its_samples_is_told_from_one_that_is_wrong(comm):
    kind, said = cause(comm, lambda: nn.Sequential(nn.Linear(6, 6), Centred(), nn.Linear(6, 5)), (6,), Layout(dp=2))
    assert kind == "forward"
    assert "depends on which samples it is given, or how many" in said
    kind, said = cause(comm, lambda: nn.Sequential(nn.Linear(6, 6), Wrong(), nn.Linear(6, 5)), (6,), Layout(dp=2))
    assert kind == "forward"
    assert said.startswith("the layer itself: on rank 1 its output for the same input differs")


class Multiplied(nn.Module):
    """Multiplies by a function of the number of ranks and of the step."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x * float(self.by(world().size, self.position.step))

    def output_shape(self, input_shape):
        return input_shape


def multiplied(by):
    return lambda: nn.Sequential(nn.Linear(6, 6), Multiplied(by), nn.Linear(6, 5))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(pp=2, microbatches=2), Layout(mp=2)])
@pytest.mark.parametrize("by", [lambda ranks, step: ranks, lambda ranks, step: 1 / ranks])
def test_a_layer_that_knows_the_ranks_is_not_taken_for_a_wrong_reduction(comm, layout, by):
    kind, said = cause(comm, multiplied(by), (6,), layout)
    assert kind == "forward"
    assert said.startswith("the layer itself")


class RowParallel(nn.Module):
    """y = x W + b, of which each of two ranks computes what half of the features give; `complete` adds it up."""

    def __init__(self, complete, has_bias=True):
        super().__init__()
        self.complete = complete
        self.weight = nn.Parameter((6, 6), nn.initializers.xavier_uniform(6, 6))
        self.bias = nn.Parameter((6,), nn.initializers.constant(0.5)) if has_bias else None

    def forward(self, x):
        comm = world()
        own = partition.share(6, comm.size, comm.rank)
        y = x[:, own] @ self.weight[own]
        y = collectives.all_reduce(y, comm) if self.complete else y
        return y if self.bias is None else y + self.bias

    def output_shape(self, input_shape):
        return input_shape


@pytest.mark.ranks(2)
@pytest.mark.parametrize("has_bias", [True, False])
def test_an_own_layer_that_does_not_add_up_lacks_a_reduction(comm, has_bias):
    def build(complete):
        return lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), RowParallel(complete, has_bias), nn.Linear(6, 5))

    layout = Layout(mp=2, split={"0": "output:whole", "3": "output:whole"})
    kind, said = cause(comm, build(False), (6,), layout)
    assert kind == "forward"
    assert said == "a missing reduction: each rank has its own summand"
    found = divergence(comm, build(True), (6,), layout)
    assert found is None or found.kind != "forward"


# -- steps and ranks -----------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
def test_the_step_is_the_first_above_the_bound(comm):
    build = multiplied(lambda ranks, step: 1 if ranks == 1 else 2 if step == 3 else 1 + 1e-7)
    assert divergence(comm, build, (6,), Layout(dp=2), steps=5).step == 0
    assert divergence(comm, build, (6,), Layout(dp=2), steps=5, bound=1e-3).step == 3


class OfHalfTheRate(optim.SGD):
    def step(self, scale=1.0):
        super().step(scale * (0.5 if world().rank == 1 else 1.0))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_wrong_update_names_the_rank_that_has_the_weight(comm, momentum):
    layout = Layout(pp=2, microbatches=2)
    make = lambda parameters: OfHalfTheRate(parameters, 0.1, momentum=momentum)  # noqa: E731
    found = divergence(comm, fully, (6,), layout, steps=1, make_optimizer=make)
    assert (found.kind, found.rank) == ("update", 1)
    assert "the gradients are right, but" in found.cause


@pytest.mark.ranks(2)
def test_wrong_weights_before_a_step_name_the_rank_that_has_them(comm, monkeypatch):
    right = nn.Module.initialize

    def otherwise(network, seed=0, *arguments, **named):
        return right(network, seed + world().rank, *arguments, **named)

    monkeypatch.setattr(nn.Module, "initialize", otherwise)
    found = divergence(comm, fully, (6,), Layout(pp=2, microbatches=2))
    assert (found.kind, found.rank) == ("weights before", 1)


# -- the loss ------------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
def test_an_error_is_relative_to_the_parallel_loss_where_the_serial_one_is_negligible(comm):
    def loss(scores, targets, total):
        return nn.cross_entropy(scores, targets, total) * (1e-300 if world().size == 1 else 1.0)

    found = divergence(comm, fully, (6,), Layout(dp=2), loss=loss)
    assert found.kind == "loss"
    assert found.error <= 1
    assert "off by 1.0e+00" in str(found)


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ((1.0, 2.0, 3.0), 0.5),
        ((0.0, 0.0, 0.0), 0.0),
        ((0.5, 0.0, 0.5), 1.0),
        ((np.nan, 0.0, np.nan), np.inf),
        ((np.inf, 1.0, np.inf), np.inf),
    ],
)
def test_relative_to_what(numbers, error):
    assert relative(*numbers) == error


@pytest.mark.ranks(2)
@pytest.mark.parametrize("constant", [0.0, 0.5])
def test_the_cause_of_a_loss_is_that_of_the_factor_that_is_shown(comm, constant):
    """The gradient is doubled, and so is the loss, or not."""

    def loss(scores, targets, total):
        value = nn.cross_entropy(scores, targets, total)
        return value if world().size == 1 else value * 2 - constant * len(targets) / total

    found = divergence(comm, fully, (6,), Layout(dp=2), loss=loss)
    assert found.kind == "loss"
    counted = "counted 2 times, once by each of the 2 replicas: reduced twice, or 1/2 missing"
    if constant:
        assert found.factor != pytest.approx(2)
        assert found.cause == f"that the gradient it gives back is 2 times the serial one: {counted}"
    else:
        assert found.factor == pytest.approx(2)
        assert found.cause == counted


WEIGHTS = []


def with_weights():
    """The network; its weights are kept for the penalty."""
    network = fully()
    WEIGHTS[:] = network.parameters()
    return network


def penalised(scores, targets, total):
    squares = [ops.sum(ops.power(weight, 2)) for weight in WEIGHTS]
    return nn.cross_entropy(scores, targets, total) + sum(squares[1:], squares[0]) * 0.01


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        (Layout(dp=2), "loss"),
        (Layout(dp=2, microbatches=2), "loss"),
        (Layout(mp=2), "gradient"),
        (Layout(pp=2, microbatches=2), "gradient"),
    ],
)
def test_a_penalty_in_every_call_comes_with_advice(comm, layout, kind):
    found = divergence(comm, with_weights, (6,), layout, loss=penalised)
    assert found.kind == kind
    assert "scale it by len(targets) / total" in found.cause


# -- the mesh ------------------------------------------------------------------------------------------------------
def exchanged(mesh):
    """Ranks with an odd number are in reverse order along the data axis."""
    comm = mesh.world
    mesh.data = comm.split(comm.rank % 2, (comm.rank // 2) ^ (comm.rank % 2), name="data", axis="data")
    return mesh


@pytest.mark.ranks(4)
def test_a_wrong_mesh_is_named(comm, monkeypatch):
    build = lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5))  # noqa: E731
    says = "a wrong mesh: rank 1 is at data 1, model 1 in place of data 0, model 1"
    right = Mesh.__init__

    def wrong(mesh, *arguments, **sizes):
        right(mesh, *arguments, **sizes)
        if mesh.shape["data"] > 1:
            exchanged(mesh)

    monkeypatch.setattr(Mesh, "__init__", wrong)
    even = {"x": np.random.default_rng(0).standard_normal((16, 6)), "y": np.arange(16) % 5, "batch_size": 8}
    assert divergence(comm, build, (6,), Layout(dp=2, mp=2), **even).cause == says
    with pytest.raises(AssertionError, match=says):
        assert_equivalent(build, Layout(dp=2, mp=2), 8, comm=comm, input_shape=(6,))


# -- words ---------------------------------------------------------------------------------------------------------
def test_a_weight_that_is_missing_after_an_update_is_reported():
    assert causes.of_update(np.zeros(0), np.ones(3), None, SERIAL) == "missing in the parallel run: no rank has it"


@pytest.mark.parametrize(
    ("shape", "edges", "says"),
    [
        ((3, 2, 5, 5), {2: (True, False), 3: (False, False)}, "halo rows missing: a tile of another size"),
        ((3, 2, 6, 4), {2: (True, False), 3: (True, True)}, "halo columns missing"),
        ((3, 2, 5, 5), ALONE, "a shard of another size"),
        ((3, 1, 5, 5), {2: (True, False), 3: (False, False)}, "a shard of another size"),
    ],
)
def test_a_tile_without_its_halo(shape, edges, says):
    pieces = {0: (np.ones(shape), whole())}
    assert layer_causes.of_forward(nn.Conv2d(2, 2, 3), pieces, 0, [0], {}, "conv", SERIAL, edges).startswith(says)
    assert layer_causes.of_backward(pieces, 0, [0], SERIAL, edges).startswith(says)


# -- what is not said ----------------------------------------------------------------------------------------------
def test_once_is_no_count():
    assert causes.of_factor(1 + 1e-9, Layout(dp=2)) is None
    assert causes.of_factor(3.0, Layout(dp=2)) == "counted 3 times"

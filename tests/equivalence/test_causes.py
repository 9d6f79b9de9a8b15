"""What a difference is said to come from is true: bugs that look alike are told apart, and nothing is said in doubt."""

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.equivalence import Experiment, causes, first_divergence, record, synthetic_experiment
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import convolution as split_convolution
from parallel_dl.mpi import Communicator, Mesh, world
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


def cause(comm, build, shape, layout):
    """What the first difference is said to come from; on every rank."""
    what = synthetic_experiment(build, shape, 5, batch_size=7, steps=2)
    assert isinstance(what, Experiment)
    mesh = Mesh(comm, data=layout.dp, model=layout.mp, pipe=layout.pp)
    serial = record(what, Layout(microbatches=layout.microbatches)) if comm.rank == 0 else None
    found = first_divergence(what, layout, mesh, serial, record(what, layout, mesh))
    mesh.free()
    return comm.broadcast_object(None if found is None else (found.kind, found.cause))


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
    said = causes.of_forward(nn.Conv2d(2, 2, 3), {0: (got, whole())}, 0, [0], {}, "conv", SERIAL, edges)
    assert (said is None) if says is None else said.startswith(says)


def swapped(right):
    return lambda window: tuple((after, before) for before, after in right(window))


def wider(right):
    return lambda window: tuple((before + after, 0) for before, after in right(window))


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("wrong", [swapped, wider])
def test_a_wrong_padding_is_no_layer_that_mixes_samples(comm, monkeypatch, wrong):
    monkeypatch.setattr(split_convolution, "_padding", wrong(split_convolution._padding))
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
    assert "mixes the samples" in said
    kind, said = cause(comm, lambda: nn.Sequential(nn.Linear(6, 6), Wrong(), nn.Linear(6, 5)), (6,), Layout(dp=2))
    assert kind == "forward"
    assert said is None


# -- what is not said ----------------------------------------------------------------------------------------------
def test_once_is_no_count():
    assert causes.of_factor(1 + 1e-9, Layout(dp=2)) is None
    assert causes.of_factor(3.0, Layout(dp=2)) == "counted 3 times"


def test_infinities_are_no_reason():
    array = np.array([1.0, -np.inf, 2.0])
    with np.errstate(all="raise"):
        assert not causes.close(array, array + 1)

"""When exchanges are posted, and when they are waited for: the order that hides them behind computing."""

import numpy as np
import pytest
from test_one_weird_trick_equals_serial import CLASSES, SHAPE, experiment, normalised, small

from parallel_dl.datasets import Share
from parallel_dl.errors import InputError
from parallel_dl.hybrid import OneWeirdTrick
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.partition import share, shares
from parallel_dl.schedule import one_weird_trick, sub_batches
from parallel_dl.trainer import Trainer


class Noted:
    """What is under way, whose `wait` is written down."""

    def __init__(self, pending, name, events):
        self.pending, self.name, self.events = pending, name, events

    def wait(self):
        self.events.append(f"wait {self.name}")
        return self.pending.wait()


def events_of(comm, scheme, samples):
    """One iteration of a hybrid: what it starts and waits for, and its forward passes, in order."""
    trick = OneWeirdTrick(small().initialize(0, "float64"), comm, SHAPE, scheme)
    events, exchange, numbers = [], trick.exchange, {"gather": 0, "reduction": 0}

    def noting(kind, start):
        def noted(*arguments):
            name = f"{kind} {numbers[kind]}"
            numbers[kind] += 1
            events.append(f"start {name}")
            return Noted(start(*arguments), name, events)

        return noted

    exchange.start_gather = noting("gather", exchange.start_gather)
    exchange.start_reduction = noting("reduction", exchange.start_reduction)
    trick.classifier.register_forward_pre_hook(lambda module, x: events.append("forward") or x)
    loss = trick.loss
    trick.loss = lambda *arguments: events.append("loss") or loss(*arguments)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(samples, *SHAPE)), random.integers(0, CLASSES, samples)
    own = share(samples, comm.size, comm.rank)
    parts = [number for number, part in enumerate(sub_batches(scheme, shares(samples, comm.size))) if part.size]
    program = one_weird_trick(comm.size, [parts]).programs[comm.rank]
    trick.run(program, [Share(x[own], y[own], own.start, samples)], [0])
    trick.free()
    return events


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("scheme", ["b", "c"])
def test_the_next_part_is_under_way_while_one_computes(comm, scheme):
    """And gradients are on their way back while the next part goes forward."""
    parts = comm.size
    expected = ["start gather 0"]
    for part in range(parts):
        expected.append(f"wait gather {part}")
        if part + 1 < parts:
            expected.append(f"start gather {part + 1}")
        expected += ["forward", "loss"]
        if part:
            expected.append(f"wait reduction {part - 1}")
        expected.append(f"start reduction {part}")
    expected.append(f"wait reduction {parts - 1}")
    assert events_of(comm, scheme, 9) == expected


@pytest.mark.ranks(2)
def test_scheme_a_has_nothing_to_overlap(comm):
    assert events_of(comm, "a", 9) == [
        *("start gather 0", "wait gather 0", "forward", "loss", "start reduction 0", "wait reduction 0")
    ]


@pytest.mark.ranks(3)
def test_empty_parts_are_left_out(comm):
    """One sample, of rank 0: the shares of ranks 1 and 2 are empty."""
    assert events_of(comm, "b", 1).count("forward") == 1


@pytest.mark.ranks(3)
def test_a_share_of_another_size_is_refused(comm):
    trick = OneWeirdTrick(small().initialize(0, "float64"), comm, SHAPE, "b")
    with pytest.raises(ValueError, match=f"rank {comm.rank} has 5 of 9 samples"):
        trick.begin([Share(np.zeros((5, *SHAPE)), np.zeros(5, int), 0, 9)], [0])
    trick.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("fill", [True, False])
def test_ranks_that_start_from_other_seeds_are_refused(comm, fill):
    network = small().initialize(comm.rank, "float64", fill=fill)
    with pytest.raises(InputError, match="start alike, but seed: rank 1 differs from rank 0"):
        OneWeirdTrick(network, comm, SHAPE)


@pytest.mark.ranks(2)
def test_whole_weights(comm):
    """Read from a serial network, and given back whole; each rank has its pieces of the fully connected layers only."""
    what = experiment(normalised)
    serial = what.build().initialize(7, "float64")
    layout = Layout(dp=2, hybrid="owt", scheme="c")
    trainer = Trainer(
        what.build().initialize(1, "float64", fill=False),
        what.make_optimizer,
        layout,
        Mesh(comm, data=2),
        input_shape=SHAPE,
    )
    assert trainer.network.fc1.weight.shape == (3, 16)
    assert trainer.network.conv.weight.shape == (4, 2, 3, 3)
    trainer.load_state_dict(serial.state_dict())
    ours, whole = trainer.state_dict(), serial.state_dict()
    assert ours.keys() == whole.keys()
    assert all(np.array_equal(ours[name], whole[name]) for name in whole)
    gathered = trainer.gather_state()
    assert (gathered is None) == (comm.rank == 1)
    alone = Trainer(serial, what.make_optimizer, Layout(), Mesh.serial(), input_shape=SHAPE)
    assert trainer.weights_sha256() == alone.weights_sha256()
    x, y = what.x, what.y
    found, expected = trainer.test(x, y, 8), alone.test(x, y)
    assert found.accuracy == expected.accuracy
    assert found.loss == pytest.approx(expected.loss, rel=1e-10)
    with pytest.raises(ValueError, match=r"fc1.weight has shape"):
        trainer.load_state_dict({**whole, "fc1.weight": whole["fc1.weight"][:3]})
    trainer.free()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scheme": "b"}, "scheme b: needs hybrid"),
        ({"variable_batch": True}, "variable_batch: needs hybrid"),
        ({"hybrid": "otw"}, "did you mean 'owt'?"),
        ({"hybrid": "owt", "scheme": "d"}, "unknown scheme 'd'"),
        ({"hybrid": "owt", "mp": 2}, "mp 2: must be 1 with hybrid owt"),
        ({"hybrid": "owt", "pp": 2}, "pp 2: must be 1 with hybrid owt"),
        (
            {"hybrid": "owt", "microbatches": 2, "scheme": "b", "variable_batch": True},
            "microbatches 2: must be 1 with variable_batch",
        ),
        ({"hybrid": "owt", "chunks": 2}, "chunks 2: needs a pipeline"),
        ({"hybrid": "owt", "stages": ["fc1"]}, "stages: needs a pipeline"),
    ],
)
def test_refused_layouts(fields, words):
    with pytest.raises(InputError, match=words):
        Layout(dp=2, **fields)

"""What one weird trick sends, counted: activations and their gradients in every scheme, and the most in one step."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Ledger, Mesh, gather_rows
from parallel_dl.partition import shares
from parallel_dl.schedule import SCHEMES, largest_outbound, received, sub_batches
from parallel_dl.trainer import Trainer

VALUES = 27  # after the features


def network():
    return nn.Sequential(
        conv=nn.Conv2d(2, 3, 3, padding=1),
        pool=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(0.5),
        fc1=nn.Linear(VALUES, 12),
        relu=nn.ReLU(),
        fc2=nn.Linear(12, 8),
        fc3=nn.Linear(8, 4),
    )


def iteration(comm, scheme, samples, split=None):
    """The rows of all ranks for one iteration, by (rank, layer, direction, call)."""
    counted = Communicator(comm.mpi, checked=False, ledger=Ledger())
    random = np.random.default_rng(0)
    x, y = random.normal(size=(samples, 2, 6, 6)), random.integers(0, 4, samples)
    trainer = Trainer(
        network().initialize(0, "float64"),
        lambda parameters: optim.SGD(parameters, 0.1),
        Layout(dp=comm.size, hybrid="owt", scheme=scheme, split=split),
        Mesh(counted, data=comm.size),
        "mpi",
        input_shape=(2, 6, 6),
    )
    (batch,) = trainer.loader(x, y, samples, 0).epoch(0)
    with counted.ledger.counting():
        trainer.step(batch)
    rows = gather_rows(counted, counted.ledger)
    trainer.free()
    return {(row.rank, row.layer, row.direction, row.call): row for row in rows}


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_received_is_the_same_in_every_scheme(comm, scheme):
    """(K - 1) shares of activations per rank and iteration, and as many gradients come back."""
    each = 4
    rows = iteration(comm, scheme, each * comm.size)
    others = range(1, comm.size)
    for direction in ("forward", "backward"):
        sent = [rows[rank, "activations", direction, "isend"].values for rank in range(comm.size)]
        assert sent == [(comm.size - 1) * each * VALUES] * comm.size
        # what a rank sends goes to every other one alike, or comes from every other one alike
        got = [sum(sent[(rank + step) % comm.size] // (comm.size - 1) for step in others) for rank in range(comm.size)]
        assert got == [received([each] * comm.size, rank, VALUES) for rank in range(comm.size)]
    assert not any(layer == "activations" and call != "isend" for _, layer, _, call in rows)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_uneven_shares(comm, scheme):
    """5 samples: shares of 2, 2 and 1. Each is sent to two others; gradients come from both."""
    rows = iteration(comm, scheme, 5)
    for rank, own in enumerate((2, 2, 1)):
        assert rows[rank, "activations", "forward", "isend"].values == 2 * own * VALUES
        assert rows[rank, "activations", "backward", "isend"].values == (5 - own) * VALUES


@pytest.mark.ranks(2, 4)
def test_nothing_else_is_sent_for_the_input_of_the_first_split_layer(comm):
    """Its partial gradient is reduced to the owners alone; where it is not split nothing has to go back at all."""
    rows = iteration(comm, "b", 8, {"fc1": "output", "fc2": "input"})
    assert not any(layer == "fc1" for _, layer, _, _ in rows)
    rows = iteration(comm, "b", 8, {"fc2": "output", "fc3": "input"})
    assert (0, "activations", "forward", "isend") in rows
    assert (0, "activations", "backward", "isend") not in rows


@pytest.mark.ranks(2, 3, 4, 8)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_largest_outbound_of_a_step(comm, scheme):
    """With a share of 8: in a and b (K - 1) shares, in c less than one share whatever K is."""
    from parallel_dl.hybrid.exchange import Exchange

    each = 8 if comm.size != 3 else 9  # K divides it
    counted = Communicator(comm.mpi, checked=False, ledger=Ledger())
    exchange = Exchange(counted, VALUES)
    share = np.arange(each * VALUES, dtype=float).reshape(each, VALUES) + 1000 * comm.rank
    most = {"gather": 0, "reduction": 0}
    for part in sub_batches(scheme, [each] * comm.size):
        for kind in most:
            counted.ledger.clear()
            with counted.ledger.counting():
                if kind == "gather":
                    whole = exchange.start_gather(part, share).wait()
                else:
                    back = exchange.start_reduction(part, whole * (comm.rank + 1)).wait()
            most[kind] = max(most[kind], sum(row.values for row in counted.ledger.rows()))
        # what was gathered is in the order of the ranks; K summands of it add up to 1 + 2 + ... + K times it
        own = part.own[comm.rank]
        assert np.array_equal(whole[part.rows(comm.rank)], share[own])
        assert np.array_equal(back, share[own] * comm.size * (comm.size + 1) / 2)
        for rank, slice_of in enumerate(part.own):
            expected = share[slice_of] + 1000 * (rank - comm.rank)
            assert np.array_equal(whole[part.rows(rank)], expected)
    gathered = max(comm.all_gather_object(most["gather"]))
    said = largest_outbound(scheme, [each] * comm.size, VALUES)
    assert gathered == said == (comm.size - 1) * each * VALUES // (comm.size if scheme == "c" else 1)
    assert (said < each * VALUES) == (scheme == "c" or comm.size == 1) or comm.size == 2
    # the reduction goes the other way: a rank that owns nothing sends one share, one that owns something less
    assert max(comm.all_gather_object(most["reduction"])) <= said


def test_parts():
    """Every sample is in one part, at its place; sizes differ as shares do."""
    for scheme in SCHEMES:
        for ranks in (1, 2, 3, 5):
            for samples in (0, 1, 4, 13):
                own = shares(samples, ranks)
                parts = sub_batches(scheme, own)
                assert len(parts) == (1 if scheme == "a" else ranks)
                places = np.concatenate([part.indices for part in parts])
                assert sorted(places.tolist()) == list(range(samples))
                assert all(sum(part.sizes) == part.size == len(part.indices) for part in parts)
    one, two = sub_batches("c", [3, 2])
    assert (one.indices, two.indices) == ((0, 1, 3), (2, 4))
    assert (one.rows(1), two.own) == (slice(2, 3), (slice(2, 3), slice(1, 2)))

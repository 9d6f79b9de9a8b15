"""What a plan says that each rank sends is what the ledger counts; and the numbers of a few networks by hand."""

import numpy as np
import pytest
from split_cases import CASES, FAMILIES, Case, fully, images, mlp, naming

from parallel_dl import cost, networks, nn, splits
from parallel_dl.autograd import no_grad
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import Communicator, Ledger, Mesh
from parallel_dl.trainer import Trainer

SAMPLES = 5


def with_ledger(comm):
    return Communicator(comm.mpi, checked=False, ledger=Ledger())


def step(comm, case, dp=1, microbatches=1):
    """(the ledger's rows of one training step on the model axis, the plan)."""
    counted, mp = with_ledger(comm), comm.size // dp
    what = case.experiment(SAMPLES, samples=SAMPLES)
    network = what.build().initialize(0, "float64")
    mesh = Mesh(counted, data=dp, model=mp)
    layout = Layout(dp, mp, microbatches, case.splits)
    trainer = Trainer(network, what.make_optimizer, layout, mesh, loss=what.loss, input_shape=case.shape)
    (batch,) = trainer.loader(what.x, what.y, SAMPLES, 0).epoch(0)
    with counted.ledger.counting():
        trainer.step(batch)
    trainer.free()
    return counted.ledger.rows(), trainer.parallel.plan


def entered(rows):
    """(layer, direction, call) -> (messages, values, bytes) of what the layers send over the model axis."""
    layers = [row for row in rows if row.axis == "model" and row.layer != "gradients"]
    return {(row.layer, row.direction, row.call): (row.messages, row.values, row.bytes) for row in layers}


def summed_gradients(rows):
    """Values of the partial gradients that are summed over the model axis, with one flag for each."""
    summed = [row for row in rows if row.axis == "model" and row.layer == "gradients"]
    return sum(row.bytes + row.shared_memory_bytes for row in summed) // 8


def predicted(plan, rank, samples, loss):
    """The same from the plan, and what the loss sends."""
    found = {}

    def add(layer, direction, call, messages, values, itemsize):
        counts = found.get((layer, direction, call), (0, 0, 0))
        more = messages, values, values * itemsize
        found[layer, direction, call] = tuple(a + b for a, b in zip(counts, more))

    for layer, message in splits.messages(plan, rank, samples):
        add(layer, message.direction, message.call, message.messages, message.values, message.itemsize or 8)
    if plan.output.shard(1) is not None and loss is nn.cross_entropy:
        add("loss", "forward", "all_reduce", 2, 3 * samples, 8)
    return found


@pytest.mark.sampled(3)
@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_says_what_is_sent(comm, family):
    for name, case in FAMILIES[family].items():
        if comm.size in case.ranks:
            rows, plan = step(comm, case)
            with naming(name):
                assert entered(rows) == predicted(plan, comm.rank, SAMPLES, case.loss)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("name", ["pair", "batch norm on tiles", "alexnet"])
def test_of_a_replica_of_several(comm, name):
    """What goes over the model axis is that of the own share; the gradients' sum is on the axis data."""
    rows, plan = step(comm, CASES[name], dp=2)
    own = 3 if comm.rank < 2 else 2
    assert entered(rows) == predicted(plan, comm.rank % 2, own, CASES[name].loss)


# -- by hand -------------------------------------------------------------------------------------------------------
def summary(rows):
    """(layer, direction, call) -> (messages, values)."""
    return {key: counts[:2] for key, counts in entered(rows).items()}


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("microbatches", [1, 3])
def test_an_output_input_pair_has_two_collectives(comm, microbatches):
    case = mlp("- o i -", 6, 5, 8, 7, 3)
    rows, _ = step(comm, case, microbatches=microbatches)
    assert summary(rows) == {
        ("fc3", "forward", "all_reduce"): (microbatches, 7 * SAMPLES),
        ("fc2", "backward", "all_reduce"): (microbatches, 5 * SAMPLES),
    }


@pytest.mark.ranks(2, 4)
def test_kernel_1_needs_nothing_of_other_rows(comm):
    """After the first layer, which is given the images, only the weights' gradients are summed: once, together."""
    rows, _ = step(comm, CASES["rows, kernel 1"])
    assert not {key for key in summary(rows) if key[0].startswith("conv")}
    assert summed_gradients(rows) >= (4 * 3 + 4) + (6 * 4 + 6) + 4


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize(("name", "sent"), [("output", 1), ("logistic", 0), ("mse", 0), ("own loss", 0)])
def test_what_the_loss_sends(comm, name, sent):
    rows, _ = step(comm, CASES[name])
    loss = {key: counts for key, counts in summary(rows).items() if key[0] == "loss"}
    assert loss == ({("loss", "forward", "all_reduce"): (2, 3 * SAMPLES)} if sent else {})


@pytest.mark.ranks(3)
def test_halo_rows_by_hand(comm):
    """9 rows on 3 ranks: a row of 4 channels x 4 columns over each border, in either direction; gradients go back."""
    case = images(
        {"conv1": "rows", "conv2": "rows"},
        (2, 9, 4),
        lambda: {"conv1": nn.Conv2d(2, 4, 3, padding=1), "conv2": nn.Conv2d(4, 2, 3, padding=1)},
    )
    rows, _ = step(comm, case)
    borders = 2 if comm.rank == 1 else 1
    own = {key: counts for key, counts in summary(rows).items() if key[0] == "conv2"}
    assert own == {
        ("conv2", "forward", "isend"): (borders, borders * 4 * 4 * SAMPLES),
        ("conv2", "backward", "isend"): (borders, borders * 4 * 4 * SAMPLES),
    }


THRESHOLDS = ((16, 24), (24, 8), (8, 8), (8, 32), (32, 16))  # Fin, Fout of fc1, ...; widths that 4 ranks divide


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("batch", [1, 7, 9, 11, 13, 20])
def test_what_moves_less_is_what_the_costs_choose(comm, batch):
    """A layer split by output, in a chain of such: its y is gathered by the next one, its x gradient scattered here.

    With data parallelism its weights' gradient is summed, of which a ring sends 2 (P-1)/P.
    """
    widths = [before for before, _ in THRESHOLDS] + [16]
    network = fully(*widths, bias=False)
    costs = {layer.name: layer for layer in cost.cost_of(network, (16,)).layers}
    case = Case(lambda: network, dict.fromkeys(["fc1", "fc2", "fc3", "fc4", "fc5"], "output"), (16,))
    counted = with_ledger(comm)
    what = case.experiment(batch, samples=batch)
    trainer = Trainer(
        network.initialize(0),
        what.make_optimizer,
        Layout(1, comm.size, split=case.splits),
        Mesh(counted, model=comm.size),
        input_shape=case.shape,
    )
    (whole,) = trainer.loader(what.x, what.y, batch, 0).epoch(0)
    with counted.ledger.counting():
        trainer.step(whole)
    trainer.free()
    of_model = summary(row for row in counted.ledger.rows() if row.axis == "model")
    for number in (2, 3, 4):
        layer = costs[f"fc{number}"]
        gathered = of_model[f"fc{number + 1}", "forward", "all_gather"][1]
        scattered = of_model[f"fc{number}", "backward", "reduce_scatter"][1]
        payload = of_data(comm, layer.inputs, layer.activations)
        ring = payload * 2 * (comm.size - 1) / comm.size
        assert payload == layer.weights
        assert (gathered + scattered < ring) == (layer.choice(batch) == "model"), (layer.name, batch)
        assert (batch < layer.threshold_batch) == (gathered + scattered < ring)


def of_data(comm, before, after):
    """Values of the gradient that data parallelism sums for a layer without bias."""
    counted = with_ledger(comm)
    mesh = Mesh(counted, data=comm.size)
    layer = nn.Linear(before, after, bias=False).initialize(0)
    gradients = GradientAllReduce(layer.parameters(), mesh.data, "mpi")
    nn.mse(layer(np.ones((1, before), np.float32)), np.ones((1, after), np.float32)).backward()
    with counted.ledger.counting():
        gradients.all_reduce()
    gradients.free()
    mesh.free()
    (row,) = counted.ledger.rows()
    assert (row.axis, row.layer, row.call) == ("data", "gradients", "all_reduce")
    return row.values - 1  # and for each parameter whether there is a gradient


# -- AlexNet -------------------------------------------------------------------------------------------------------
ALEXNET = {"conv3": 21_632, "fc6": 4_608, "fc7": 2_048, "fc8": 2_048}


def test_the_plan_of_two_tower_alexnet():
    """What a rank gets of a sample: half of pool2's 256 x 13 x 13, of pool5's 9,216, of fc6's and fc7's 4,096."""
    plan = splits.plan(networks.create("alexnet"), (3, 224, 224), 2)
    for rank in (0, 1):
        forward = {name: m.values for name, m in splits.messages(plan, rank) if m.direction == "forward"}
        assert forward == ALEXNET
        assert sum(forward.values()) == 30_336


@pytest.mark.ranks(2)
def test_two_tower_alexnet(comm):
    """The network of 2012 at full size, on two ranks as then: counted in a forward pass of one image."""
    counted = with_ledger(comm)
    mesh = Mesh(counted, model=2)
    parallel = parallelize(networks.create("alexnet"), mesh.model, (3, 224, 224))
    for parameter in parallel.network.parameters():
        parameter.data = np.full(parameter.shape, 1e-3, np.float32)  # drawing them would take longer than all the rest
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    with no_grad(), counted.ledger.counting():
        scores = parallel.network.eval()(image)
        loss = parallel.loss(nn.cross_entropy)(scores, np.array([3]))
    assert scores.shape == (1, 500)
    assert np.isfinite(loss.item())
    rows = counted.ledger.rows()
    assert {row.layer: row.values for row in rows} == {**ALEXNET, "loss": 3}
    assert {row.call for row in rows if row.layer != "loss"} == {"all_gather"}
    assert sum(row.bytes for row in rows if row.layer != "loss") == 4 * 30_336

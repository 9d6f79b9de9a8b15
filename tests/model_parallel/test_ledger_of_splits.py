"""What a plan says that each rank sends is what the ledger counts; and the numbers of a few networks by hand."""

import pytest
from split_cases import CASES

from parallel_dl import nn, splits
from parallel_dl.layout import Layout
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
    return [row for row in counted.ledger.rows() if row.axis == "model"], trainer.parallel.plan


def entered(rows):
    """(layer, direction, call) -> (messages, values, bytes)."""
    return {(row.layer, row.direction, row.call): (row.messages, row.values, row.bytes) for row in rows}


def predicted(plan, rank, samples, loss):
    """The same from the plan, and what the loss sends."""
    found = {}

    def add(layer, direction, call, messages, values, itemsize):
        counts = found.get((layer, direction, call), (0, 0, 0))
        more = messages, values, values * itemsize
        found[layer, direction, call] = tuple(a + b for a, b in zip(counts, more))

    for layer, message in splits.messages(plan, rank):
        values = message.values * samples + message.fixed
        add(layer, message.direction, message.call, message.messages, values, message.itemsize or 8)
    if isinstance(plan.output, splits.Sliced) and not plan.finish and loss is nn.cross_entropy:
        add("loss", "forward", "all_reduce", 2, 3 * samples, 8)
    return found


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("name", CASES)
def test_the_plan_says_what_is_sent(comm, name):
    case = CASES[name]
    if comm.size not in case.ranks:
        pytest.skip(f"is for {case.ranks} ranks")
    rows, plan = step(comm, case)
    assert entered(rows) == predicted(plan, comm.rank, SAMPLES, case.loss)

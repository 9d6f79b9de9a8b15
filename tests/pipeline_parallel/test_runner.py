"""What a rank of a pipeline holds and sends: live activations, messages, weights; and the asynchronous schedule."""

import numpy as np
import pytest

from parallel_dl import datasets, networks, nn, optim
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Ledger, Mesh
from parallel_dl.pipeline_parallel import PipelineParallel
from parallel_dl.schedule import check, make, with_messages
from parallel_dl.trainer import Trainer, as_batches


def deep():
    return networks.MLP((6,), 4, hidden=(5,) * 7).initialize(2, "float64", fill=False)


def data(samples=24, seed=0):
    random = np.random.default_rng(seed)
    return random.random((samples, 6)), random.integers(0, 4, samples)


def trainer_of(comm, schedule="1f1b", microbatches=4, network=None, rate=0.1):
    layout = Layout(pp=comm.size, microbatches=microbatches, schedule=schedule)
    sgd = lambda parameters: optim.SGD(parameters, rate, momentum=0.9)  # noqa: E731
    return Trainer(network or deep(), sgd, layout, Mesh(comm, pipe=comm.size), input_shape=(6,))


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("schedule", ["naive", "gpipe", "1f1b", "zb-h1", "pipedream"])
def test_live_activations_are_what_the_schedule_promises(comm, schedule):
    for m in (1, 3, 6):
        trainer = trainer_of(comm, schedule, m)
        for batch in trainer.loader(*data(), 12, seed=0).epoch(0):
            trainer.step(batch)
            promised = check(with_messages(make(schedule, comm.size, m))).peak_live
            assert trainer.pipeline.runner.peak_live == promised[comm.rank]
            assert not trainer.pipeline.runner._passed, "a tape is left"
        trainer.free()


@pytest.mark.ranks(3)
def test_messages(comm):
    """Every boundary once per microbatch in either direction: 5 values per sample."""
    ledger = Ledger()
    counted = Communicator(comm.mpi, ledger=ledger)
    trainer = trainer_of(counted, microbatches=4)
    for batch in trainer.loader(*data(), 12, seed=0).epoch(0):
        trainer.step(batch)  # the order of memory is told in the first step
        with ledger.counting():
            trainer.step(batch)
        break
    found = {(row.layer, row.direction, row.call): (row.messages, row.values) for row in ledger.rows()}
    expected = {}
    if comm.rank < 2:
        expected[f"stage {comm.rank}", "forward", "isend"] = (4, 12 * 5)
    if comm.rank > 0:
        expected[f"stage {comm.rank}", "backward", "isend"] = (4, 12 * 5)
    assert found == expected


@pytest.mark.ranks(3)
def test_a_rank_draws_its_own_weights_only(comm):
    network = deep()
    trainer = trainer_of(comm, network=network)
    drawn = {name for name, parameter in network.named_parameters() if parameter.is_filled}
    assert drawn == set(trainer.names)
    assert 0 < len(drawn) < len(network.parameters())
    whole = trainer.state_dict()
    serial = deep().state_dict()
    assert whole.keys() == serial.keys()
    assert all(np.array_equal(whole[name], serial[name]) for name in serial)
    plain = Trainer(deep(), lambda p: optim.SGD(p, 0.1), Layout(), Mesh.serial())
    assert trainer.weights_sha256() == plain.weights_sha256()
    changed = {name: array + 1 for name, array in whole.items()}
    trainer.load_state_dict(changed)
    assert all(np.array_equal(array, changed[name]) for name, array in trainer.state_dict().items())
    on_root = trainer.gather_state()
    assert (on_root is None) == (comm.rank > 0)
    with pytest.raises(KeyError, match="missing"):
        trainer.load_state_dict({})


@pytest.mark.ranks(2, 3)
def test_accuracy_is_that_of_the_serial_network(comm):
    digits = datasets.load("digits", dtype="float64")
    build = lambda: networks.MLP(digits.input_shape, digits.classes).initialize(0, "float64", fill=False)  # noqa: E731
    sgd = lambda parameters: optim.SGD(parameters, 0.1)  # noqa: E731
    layout = Layout(pp=comm.size, microbatches=2)
    piped = Trainer(build(), sgd, layout, Mesh(comm, pipe=comm.size), input_shape=digits.input_shape)
    serial = Trainer(build(), sgd, Layout(microbatches=2), Mesh.serial())
    ours, theirs = (trainer.fit(digits, 64, steps=5) for trainer in (serial, piped))
    assert ours.losses == theirs.losses
    assert ours.test_accuracy == theirs.test_accuracy


# -- pipedream -----------------------------------------------------------------------------------------------------
def replay(stages, batches, updates=0):
    """The serial program with exactly PipeDream's versions: microbatch j on stage s of p uses weights p - s - 1 updates
    old (or those at the start of the batch), and its gradient updates the newest ones."""
    network = deep()
    optimizer = optim.SGD(network.parameters(), 0.1, momentum=0.9)
    losses, p = [], len(stages)
    for batch in batches:
        history = []
        for j, part in enumerate(as_batches(batch)):
            history.append(network.state_dict())
            used = {}
            for stage in range(p):
                version = j - min(j, p - stage - 1)
                for layer in stages.layers(stage):
                    used |= {name: a for name, a in history[version].items() if name.split(".")[0] == layer}
            network.load_state_dict(used)
            network.at(updates, part.first)
            optimizer.zero_grad()
            loss = nn.cross_entropy(network(part.x), part.y, part.size)
            loss.backward()
            losses.append(loss.item())
            network.load_state_dict(history[-1])
            optimizer.step()
            updates += 1
    return losses, network.state_dict()


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("microbatches", [1, 3, 6])
def test_pipedream_is_the_serial_program_with_its_weights(comm, microbatches):
    trainer = trainer_of(comm, "pipedream", microbatches)
    batches = [batch for epoch in range(2) for batch in trainer.loader(*data(), 11, seed=0).epoch(epoch)]
    ours = [loss for batch in batches for loss in trainer.sum_losses(np.array(trainer.step(batch))).tolist()]
    losses, weights = replay(trainer.pipeline.stages, batches)
    assert ours == losses
    assert trainer.updates == len(losses)
    for name, array in trainer.state_dict().items():
        assert np.array_equal(array, weights[name]), name


@pytest.mark.ranks(4)
def test_pipedream_with_data_parallelism(comm):
    layout = Layout(dp=2, pp=2, microbatches=3, schedule="pipedream")
    sgd = lambda parameters: optim.SGD(parameters, 0.1, momentum=0.9)  # noqa: E731
    trainer = Trainer(deep(), sgd, layout, Mesh(comm, data=2, pipe=2), input_shape=(6,))
    x, y = data()
    whole = list(datasets.Loader(x, y, 11, microbatches=3).epoch(0))
    ours = [
        loss
        for batch in trainer.loader(x, y, 11, seed=0).epoch(0)
        for loss in trainer.sum_losses(np.array(trainer.step(batch))).tolist()
    ]
    losses, weights = replay(trainer.pipeline.stages, whole)
    np.testing.assert_allclose(ours, losses, rtol=1e-12)
    for name, array in trainer.state_dict().items():
        np.testing.assert_allclose(array, weights[name], rtol=1e-9, atol=1e-12)


# -- refusals ------------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
def test_refusals(comm):
    with pytest.raises(InputError, match="unknown schedule '1f2b'"):
        PipelineParallel(deep(), comm, (6,), "1f2b")
    with pytest.raises(InputError, match="cannot be cut into stages"):
        PipelineParallel(nn.Linear(6, 4), comm, (6,))
    with pytest.raises(InputError, match="2 stages: the network has 1 layers with weights"):
        PipelineParallel(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), comm, (6,))
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="are one weight, but in stages 0 and 1"):
        PipelineParallel(tied, comm, (6,))
    with pytest.raises(ValueError, match="needs input_shape"):
        Trainer(deep(), lambda p: optim.SGD(p, 0.1), Layout(pp=2), Mesh(comm, pipe=2))
    trainer = trainer_of(comm, "pipedream", 4)
    with pytest.raises(InputError, match="valid are multiples of 4"):
        trainer.fit(datasets.load("digits"), 64, steps=5)

"""What a rank of a pipeline holds and sends: live activations, messages, weights; and the asynchronous schedule."""

import numpy as np
import pytest

from parallel_dl import datasets, networks, nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import MPI, Communicator, Ledger, Mesh
from parallel_dl.pipeline_parallel import PipelineParallel
from parallel_dl.schedule import check, make, with_messages
from parallel_dl.trainer import Trainer, as_batches


def deep(dropout=0.0, dtype="float64"):
    """Gradients reach all of its layers: weights of another version, or none, make a difference everywhere."""
    layers = []
    for width in [6] + [5] * 6:
        layers += [nn.Linear(width, 5), nn.Tanh(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(5, 4)).initialize(2, dtype, fill=False)


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
    assert ours.test_loss == pytest.approx(theirs.test_loss, rel=1e-10)


# -- pipedream -----------------------------------------------------------------------------------------------------
def replay(stages, batches, updates=0, dropout=0.0):
    """The serial program with exactly PipeDream's versions: microbatch j on stage s of p uses weights p - s - 1 updates
    old (or those at the start of the batch), and its gradient updates the newest ones."""
    network = deep(dropout)
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
            network.set_position(updates, part.first)
            optimizer.zero_grad()
            loss = nn.cross_entropy(network(part.x), part.y, part.size)
            loss.backward()
            assert all(np.abs(p.grad).max() > 1e-9 for p in network.parameters() if part.x.size), "a dead network"
            losses.append(loss.item())
            network.load_state_dict(history[-1])
            optimizer.step()
            updates += 1
    return losses, network.state_dict()


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("microbatches", [1, 3, 6])
def test_pipedream_is_the_serial_program_with_its_weights(comm, microbatches):
    trainer = trainer_of(comm, "pipedream", microbatches, deep(dropout=0.2))
    runner, kept = trainer.pipeline.runner, []
    update = runner.update
    runner.update = lambda *action: (update(*action), kept.append(len(runner.stash._kept)))
    batches = [batch for epoch in range(2) for batch in trainer.loader(*data(), 11, seed=0).epoch(epoch)]
    ours = [loss for batch in batches for loss in trainer.sum_losses(np.array(trainer.step(batch))).tolist()]
    losses, weights = replay(trainer.pipeline.stages, batches, dropout=0.2)
    assert ours == losses
    assert trainer.updates == len(losses)
    assert max(kept) <= comm.size - comm.rank - 1
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


# -- what a step holds and leaves behind ---------------------------------------------------------------------------
@pytest.mark.ranks(2)
def test_one_trainer_for_batches_of_any_size(comm):
    """The numbers of microbatches may change; peaks are those of the step, and few receives are posted."""
    pipeline = trainer_of(comm, "gpipe").pipeline
    runner, posted = pipeline.runner, []
    forward = runner.forward
    runner.forward = lambda *action: (posted.append(len(runner.messages._posted)), forward(*action))
    x, y = data()
    for count in (8, 3, 1):
        pipeline.run([datasets.Share(x[i : i + 2], y[i : i + 2], i, 16) for i in range(count)], [0] * count)
        assert runner.peak_live == count
    assert max(posted) == 2


@pytest.mark.ranks(2)
def test_weight_gradients_are_put_off(comm):
    """Between I and W nothing is added to them."""
    trainer = trainer_of(comm, "zb-h1")
    runner, seen = trainer.pipeline.runner, []
    put_off, run = runner.backward_input, runner.backward_weight

    def backward_input(*action):
        before = [None if p.grad is None else p.grad.copy() for p in runner.parameters]
        put_off(*action)
        seen.append(all(np.array_equal(b, p.grad) for b, p in zip(before, runner.parameters) if b is not None))
        seen.append(all(p.grad is None or not p.grad.any() for b, p in zip(before, runner.parameters) if b is None))

    def backward_weight(*action):
        run(*action)
        seen.append(all(p.grad is not None and p.grad.any() for p in runner.parameters))

    runner.backward_input, runner.backward_weight = backward_input, backward_weight
    for batch in trainer.loader(*data(), 12, seed=0).epoch(0):
        trainer.step(batch)
    assert seen
    assert all(seen)


@pytest.mark.ranks(2)
def test_float32(comm):
    trainer = trainer_of(comm, network=deep(dtype="float32"))
    x, y = data()
    for batch in trainer.loader(x.astype("float32"), y, 12, seed=0).epoch(0):
        trainer.step(batch)
    assert all(p.grad.dtype == np.float32 for p in trainer.pipeline.parameters)
    with pytest.raises(InputError, match="gives float64, but the network is float32: convert the samples"):
        trainer.pipeline.runner.messages.require_fits(np.zeros((2, 5)), 1, 2)
    with pytest.raises(InputError, match=r"gives samples of shape \(3, 5\), but stage 1 takes \(5,\)"):
        trainer.pipeline.runner.messages.require_fits(np.zeros((2, 3, 5), "float32"), 1, 2)


@pytest.mark.ranks(2)
def test_buffers_and_modes(comm):
    """Batch norm and dropout: accuracy and running statistics are those of a serial run, also from a file's state."""
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 5), nn.BatchNorm1d(5)
    ).initialize(1, "float64", fill=False)
    x, y = data(60)
    y[...] = (x @ np.arange(6.0)).argsort().argsort() // 15  # four classes that can be learned
    sgd = lambda parameters: optim.SGD(parameters, 0.1)  # noqa: E731
    piped = Trainer(build(), sgd, Layout(pp=2, microbatches=3), Mesh(comm, pipe=2), input_shape=(6,))
    serial = Trainer(build(), sgd, Layout(microbatches=3), Mesh.serial())
    accuracies = []
    for trainer in (serial, piped):
        found = []
        for epoch in range(3):
            for batch in trainer.loader(x, y, 30, seed=0).epoch(epoch):
                trainer.step(batch)
            found.append(trainer.test(x, y).accuracy)
            if trainer is serial:
                trainer.network.eval()
                assert found[-1] == (trainer.network(x).data.argmax(axis=1) == y).mean()
        accuracies.append(found)
    assert accuracies[0] == accuracies[1]
    state = piped.state_dict()
    assert all(np.array_equal(array, state[name]) for name, array in serial.state_dict().items())
    other = {name: array + 1 for name, array in state.items()}
    piped.load_state_dict(other)
    assert all(np.array_equal(array, other[name]) for name, array in piped.state_dict().items())


@pytest.mark.ranks(3)
def test_batches_that_grow(comm):
    """A microbatch of one sample says nothing of where the samples lie in memory."""
    build = lambda: nn.Sequential(  # noqa: E731
        *(nn.Conv2d(1, 4, 3, padding=1), nn.LocalResponseNorm(3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
        *(nn.LayerNorm((4, 6, 6)), nn.Flatten(), nn.Linear(144, 5)),
    ).initialize(1, "float64", fill=False)
    random = np.random.default_rng(0)
    x, y = random.random((26, 1, 6, 6)), random.integers(0, 5, 26)
    sgd = lambda parameters: optim.SGD(parameters, 0.1)  # noqa: E731
    layout = Layout(pp=3, microbatches=2, schedule="gpipe", stages=("3", "6"))
    piped = Trainer(build(), sgd, layout, Mesh(comm, pipe=3), input_shape=(1, 6, 6))
    serial = Trainer(build(), sgd, Layout(microbatches=2), Mesh.serial())
    for trainer in (serial, piped):
        for cut in (slice(0, 2), slice(2, 6), slice(6, 26)):  # of one sample, of two, of ten
            for batch in trainer.loader(x[cut], y[cut], 20, seed=0).epoch(0):
                trainer.step(batch)
    state = piped.state_dict()
    assert all(np.array_equal(array, state[name]) for name, array in serial.state_dict().items())


@pytest.mark.ranks(2)
def test_an_output_that_does_not_depend_on_its_input(comm):
    """The layers in front have gradients of zeros, and nothing hangs."""
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).initialize(0, "float64", fill=False)
    network[2].register_forward_pre_hook(lambda layer, x: (nn.Identity()(x[0]).data,))
    trainer = trainer_of(comm, network=network)
    for batch in trainer.loader(*data(), 12, seed=0).epoch(0):
        trainer.step(batch)
    if comm.rank == 0:
        assert not any(p.grad.any() for p in trainer.pipeline.parameters)


# -- refusals ------------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
def test_refusals(comm):
    with pytest.raises(InputError, match="unknown schedule '1f2b'"):
        PipelineParallel(deep(), comm, (6,), "1f2b")
    with pytest.raises(InputError, match="cannot be cut into stages"):
        PipelineParallel(nn.Linear(6, 4), comm, (6,))
    with pytest.raises(InputError, match="2 stages: the network has 1 layer with weights; expected 1"):
        PipelineParallel(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), comm, (6,))
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="are one weight, but in stages 0 and 1"):
        PipelineParallel(tied, comm, (6,))
    with pytest.raises(ValueError, match="needs input_shape"):
        Trainer(deep(), lambda p: optim.SGD(p, 0.1), Layout(pp=2), Mesh(comm, pipe=2))
    hooked = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    hooked.register_forward_pre_hook(lambda network, x: x)
    with pytest.raises(InputError, match="a hook on the whole network"):
        PipelineParallel(hooked, comm, (6,))
    owner = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    owner.register_buffer("mean", np.zeros(6))
    with pytest.raises(InputError, match="the network's own mean would be in no stage"):
        PipelineParallel(owner, comm, (6,))
    norm = nn.BatchNorm1d(6, affine=False)
    with pytest.raises(InputError, match=r"running_mean are one buffer, but in stages 0 and 1"):
        PipelineParallel(nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 6), norm), comm, (6,))
    trainer = trainer_of(comm, "pipedream", 4)
    digits = datasets.load("digits")
    with pytest.raises(InputError, match="expected a multiple of 4"):
        trainer.fit(digits, 64, steps=5)
    with pytest.raises(InputError, match="a batch has 3 samples; expected 1 to 3"):
        trainer.fit(digits, 3, steps=4)
    with pytest.raises(RuntimeError, match="call step"):
        trainer.compute_gradients(None)
    with pytest.raises(ValueError, match=r"14.bias has shape \(2,\)"):
        trainer_of(comm).load_state_dict(trainer.state_dict() | {"14.bias": np.zeros(2)})


@pytest.mark.ranks(2)
@pytest.mark.parametrize("pipelined", [True, False])
def test_weights_loaded_by_one_replica_are_refused_on_every_rank(comm, pipelined):
    """A pipeline of one stage, whose replicas load different weights: as a network without stages does."""
    network = deep()
    pipeline = PipelineParallel(network, Communicator(MPI.COMM_SELF), (6,), "gpipe")
    loaded = pipeline if pipelined else network
    gradients = GradientAllReduce(network.parameters(), comm)
    state = network.state_dict()
    x, y = data()
    for turn in range(2):
        network.zero_grad()
        nn.cross_entropy(network(x), y).backward()
        loaded.load_state_dict(state if turn == 0 else {name: array * (comm.rank + 1) for name, array in state.items()})
        if turn == 0:
            gradients.all_reduce()
    with pytest.raises(InputError, match="replicas differ: the weights of rank 1"):
        gradients.all_reduce()
    gradients.free()

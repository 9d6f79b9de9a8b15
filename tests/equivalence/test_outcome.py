"""What a run leaves is compared, too: evaluation, counts of updates, digests, loading. Each of these is broken once."""

import dataclasses

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment, compare, record
from parallel_dl.equivalence.runs.outcome import ACCURACY, LOSS, OUTPUTS
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import ModelParallel
from parallel_dl.mpi import Mesh
from parallel_dl.pipeline_parallel import PipelineParallel
from parallel_dl.trainer import Trainer

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(9, 4)), RANDOM.integers(0, 3, 9)


def experiment(**options):
    build = lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3))  # noqa: E731
    return Experiment(build, X, Y, lambda p: optim.SGD(p, 0.1, momentum=0.9), 9, 2, **options)


def message(comm, layout, **options):
    """What the comparison says on rank 0."""
    what = experiment(**options)
    mesh = Mesh(comm, data=layout.dp, model=layout.mp, pipe=layout.pp)
    parallel = record(what, layout, mesh)
    mesh.free()
    return compare(record(what), parallel).message


def test_a_serial_run():
    run = record(experiment())
    found = run.outcome
    assert found.evaluation[OUTPUTS].shape == found.magnitudes[OUTPUTS].shape == (9, 3)
    right = (found.evaluation[OUTPUTS].argmax(axis=1) == Y).mean()
    assert found.evaluation[ACCURACY] == right
    network = experiment().build().initialize(0, "float64")
    network.load_state_dict(run.weights[-1])
    scores = network.eval()(X)
    assert np.array_equal(scores.data, found.evaluation[OUTPUTS])
    np.testing.assert_allclose(found.evaluation[LOSS], nn.cross_entropy(scores, Y).item(), rtol=1e-12)
    assert found.faults == []
    assert found.updates == dict.fromkeys(
        ["the trainer", "the optimizer", "0.weight", "0.bias", "3.weight", "3.bias"], (2,)
    )


def test_magnitudes_of_a_linear_output():
    """y = W x + b moves by |x| times the magnitudes of W, and by that of b, at most; and is no less itself."""
    what = dataclasses.replace(experiment(), build=lambda: nn.Linear(4, 3))
    run = record(what)
    of = run.magnitudes[-1]["weights"]
    most = np.abs(X) @ of["weight"].T + of["bias"]
    values = np.abs(run.outcome.evaluation[OUTPUTS])
    assert (run.outcome.magnitudes[OUTPUTS] <= (values + most) * (1 + 1e-6)).all()
    assert (run.outcome.magnitudes[OUTPUTS] >= values).all()
    assert run.outcome.magnitudes[OUTPUTS].mean() > 0.2 * most.mean()


def test_a_class_that_rounding_may_turn_says_nothing():
    what = dataclasses.replace(experiment(), build=lambda: nn.Linear(4, 3), x=np.zeros_like(X), y=np.zeros_like(Y))
    what.prepare = lambda network: network.load_state_dict({"weight": np.zeros((3, 4)), "bias": np.zeros(3)})
    what.make_optimizer = lambda p: optim.SGD(p, 0.0)
    assert set(record(what).outcome.magnitudes) == {OUTPUTS, LOSS}


LAYOUTS = [Layout(dp=2), Layout(mp=2), Layout(pp=2), Layout(pp=2, microbatches=2)]


@pytest.mark.ranks(2)
def test_right_ones(comm):
    for layout in LAYOUTS:
        assert message(comm, layout).startswith("equal: "), layout


def changed(monkeypatch, of, name, change):
    """`change(original, self, *arguments)` in the place of a method, where there are several ranks."""
    original = getattr(of, name)

    def method(self, *arguments, **options):
        comm = self.mesh.world if isinstance(self, Trainer) else self.comm
        if comm.size == 1:
            return original(self, *arguments, **options)
        return change(original, self, *arguments, **options)

    monkeypatch.setattr(of, name, method)


@pytest.mark.ranks(2)
def test_the_test_of_a_trainer(comm, monkeypatch):
    for field, quantity in (("loss", LOSS), ("accuracy", ACCURACY)):
        with monkeypatch.context() as planted:

            def half(original, *arguments, field=field):
                found = original(*arguments)
                return dataclasses.replace(found, **{field: getattr(found, field) / 2})

            changed(planted, Trainer, "test", half)
            assert f"DIFFERENT: worst is {quantity} at step 1" in message(comm, Layout(dp=2))


@pytest.mark.ranks(2)
def test_dropout_that_stays_on(comm, monkeypatch):
    def on(original, self, x, *arguments):
        monkeypatch.setattr(type(self.network), "eval", lambda network: network.train())
        found = original(self, x, *arguments)
        monkeypatch.undo()
        return found

    changed(monkeypatch, Trainer, "own_outputs", on)
    assert f"DIFFERENT: worst is {OUTPUTS}" in message(comm, Layout(dp=2))


@pytest.mark.ranks(2)
def test_outputs_that_differ_by_rank(comm, monkeypatch):
    def other(original, self, *arguments):
        return {first: array + comm.rank for first, array in original(self, *arguments).items()}

    changed(monkeypatch, Trainer, "own_outputs", other)
    assert "DIFFERENT: worst is the output in evaluation mode, which differs on rank 1" in message(comm, Layout(mp=2))


@pytest.mark.ranks(2)
def test_counts_of_updates(comm, monkeypatch):
    def twice(original, self, *arguments):
        found = original(self, *arguments)
        self.updates += self.updates == 2
        return found

    changed(monkeypatch, Trainer, "update", twice)
    said = "DIFFERENT: worst is the number of updates of the trainer, 3 in place of 2, at step 1"
    assert said in message(comm, Layout(dp=2))


@pytest.mark.ranks(2)
def test_a_parameter_that_counts_otherwise_on_one_rank(comm, monkeypatch):
    original = optim.SGD.updates_of
    monkeypatch.setattr(optim.SGD, "updates_of", lambda self: [n + comm.rank for n in original(self)])
    what = experiment()
    parallel = record(what, Layout(dp=2), Mesh(comm, data=2))
    monkeypatch.undo()
    said = compare(record(what), parallel).message
    assert "the number of updates of 0.bias, 2 and 3 in place of 2," in said


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("of", "layout"), [(ModelParallel, Layout(mp=2)), (PipelineParallel, Layout(pp=2))])
def test_digests_and_loading(comm, monkeypatch, of, layout):
    with monkeypatch.context() as planted:
        changed(planted, of, "sha256", lambda original, self: original(self)[::-1])
        assert "DIFFERENT: worst is weights_sha256, which is not the digest of" in message(comm, layout)
    with monkeypatch.context() as planted:

        def without_biases(original, self, state):
            own = self.gather(self.network.state_dict() if of is ModelParallel else self.own_state())
            original(self, {name: own[name] if name == "3.bias" else state[name] for name in state})

        changed(planted, of, "load_state_dict", without_biases)
        assert "DIFFERENT: worst is 3.bias, which is not what load_state_dict was given," in message(comm, layout)


@pytest.mark.ranks(2)
def test_a_wrong_digest_that_the_serial_run_has_too(comm, monkeypatch):
    monkeypatch.setattr(Trainer, "weights_sha256", lambda self: "0" * 64)
    assert "weights_sha256, which is not the digest of the weights, also in the serial run" in message(
        comm, Layout(dp=2)
    )


@pytest.mark.ranks(2)
def test_gradients_that_are_lost_with_the_shared_memory(comm, monkeypatch):
    def free(original, self):
        original(self)
        if self.mesh.world.rank:
            self.parameters[0].grad = None

    changed(monkeypatch, Trainer, "free", free)
    assert "a gradient, which is not what it was before Trainer.free()" in message(comm, Layout(dp=2))

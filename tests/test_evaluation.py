"""Loss and accuracy on the test set are those that a serial network with the same weights has, in every layout.

They are computed here from the outputs of all samples at once, so that no layout is compared only with another.
"""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.trainer import Trainer

LAYOUTS = {
    1: [Layout(microbatches=2), Layout(reproducible=True)],
    2: [
        Layout(dp=2),
        Layout(mp=2, split={"conv": "rows", "fc1": "output", "fc2": "input"}),
        Layout(mp=2, split={"conv": "filters", "fc1": "input", "fc2": "output"}),
        Layout(pp=2, microbatches=2),
        Layout(dp=2, hybrid="owt", scheme="c"),
        Layout(dp=2, reproducible=True),
        Layout(mp=2, reproducible=True),
        Layout(pp=2, microbatches=2, reproducible=True),
    ],
    3: [Layout(dp=3), Layout(mp=3), Layout(pp=3, microbatches=3), Layout(dp=3, hybrid="owt", scheme="b")],
}


def build(reproducible, statistics="global"):
    """What is another function in evaluation than in training; with `reproducible` no sums over a microbatch."""
    norm = nn.LayerNorm((4, 5, 4)) if reproducible else nn.BatchNorm2d(4, statistics=statistics)
    return nn.Sequential(
        conv=nn.Conv2d(2, 4, 3, padding=1),
        norm=norm,
        relu=nn.ReLU(),
        flatten=nn.Flatten(),
        drop=nn.Dropout(0.4),
        fc1=nn.Linear(80, 7),
        tanh=nn.Tanh(),
        fc2=nn.Linear(7, 5),
    ).initialize(1, "float64")


def check(trainer, layout, statistics="global"):
    """After two updates, on sets of samples of uneven sizes, one of a single sample, and in pieces of several sizes."""
    random = np.random.default_rng(0)
    x, y = random.normal(1, 2, (40, 2, 5, 4)), random.integers(0, 5, 40)
    for number, batch in enumerate(trainer.loader(x, y, 11, seed=0).epoch(0)):
        if number < 2:
            trainer.step(batch)
    serial = build(layout.reproducible, statistics)
    serial.load_state_dict(trainer.state_dict())
    serial.eval()
    for count, batch_size in ((29, 1024), (29, 4), (1, 3), (2, 1)):
        scores = serial(x[:count]).data
        powers = np.exp(scores - scores.max(1, keepdims=True))
        likelihoods = (powers / powers.sum(1, keepdims=True))[np.arange(count), y[:count]]
        found = trainer.test(x[:count], y[:count], batch_size)
        assert found.loss == pytest.approx(-np.log(likelihoods).mean(), rel=1e-10), layout
        assert found.accuracy == (scores.argmax(1) == y[:count]).mean(), layout


@pytest.mark.ranks(1, 2, 3)
def test_every_layout(comm):
    for layout in LAYOUTS[comm.size]:
        mesh = Mesh(comm, data=layout.dp, model=layout.mp, pipe=layout.pp)
        sgd = lambda parameters: optim.SGD(parameters, 0.3, momentum=0.9)  # noqa: E731
        trainer = Trainer(build(layout.reproducible), sgd, layout, mesh, input_shape=(2, 5, 4))
        check(trainer, layout)
        trainer.free()
        mesh.free()


@pytest.mark.ranks(2, 3)
def test_local_statistics(comm):
    """Every rank evaluates with the means of the ranks' running statistics."""
    layout, mesh = Layout(dp=comm.size), Mesh(comm, data=comm.size)
    trainer = Trainer(build(False, "local"), lambda parameters: optim.SGD(parameters, 0.3), layout, mesh)
    check(trainer, layout, "local")
    trainer.free()
    mesh.free()


@pytest.mark.ranks(2)
def test_squared_errors(comm):
    """A loss of values, not of classes: no accuracy."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(13, 6)), random.normal(size=(13, 3))
    for layout in (Layout(dp=2), Layout(mp=2, split={"0": "output", "1": "output"}), Layout(pp=2, microbatches=2)):
        network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).initialize(1, "float64")
        mesh = Mesh(comm, data=layout.dp, model=layout.mp, pipe=layout.pp)
        make = lambda parameters: optim.SGD(parameters, 0.1)  # noqa: E731
        trainer = Trainer(network, make, layout, mesh, loss=nn.mse, input_shape=(6,))
        whole = trainer.state_dict()
        scores = (x @ whole["0.weight"].T + whole["0.bias"]) @ whole["1.weight"].T + whole["1.bias"]
        found = trainer.test(x, y, 4)
        assert found.loss == pytest.approx(((scores - y) ** 2).sum() / len(y), rel=1e-12), layout
        assert found.accuracy is None
        trainer.free()
        mesh.free()

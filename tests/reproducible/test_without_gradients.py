"""Parameters that got no gradient have none afterwards, in leaves too: zeros would let decay and momentum move them."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment
from parallel_dl.equivalence.runs.record import batches, start
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh

LAYOUTS = {1: [Layout(reproducible=True)]}
LAYOUTS[2] = [
    Layout(dp=2, reproducible=True),
    Layout(mp=2, microbatches=2, reproducible=True),
    Layout(pp=2, microbatches=2, reproducible=True),
]


class WithSpare(nn.Linear):
    """A fully connected layer and a weight that is never used."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.spare = nn.Parameter((3,), nn.initializers.uniform(0.5))


def build():
    return nn.Sequential(flatten=nn.Flatten(), fc1=nn.Linear(6, 5), relu=nn.ReLU(), fc2=WithSpare(5, 3))


def decayed(parameters):
    return optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1)


@pytest.mark.ranks(1, 2)
def test_a_weight_that_is_not_used_stays(comm):
    random = np.random.default_rng(0)
    what = Experiment(build, random.random((20, 6)), random.integers(0, 3, 20), decayed, 7, 2)
    for layout in LAYOUTS[comm.size]:
        mesh = Mesh(comm, data=layout.dp, model=layout.mp, pipe=layout.pp)
        trainer = start(what, layout, mesh)
        before = trainer.state_dict()
        for batch in batches(what, trainer):
            trainer.compute_gradients(batch)
            found = {name: parameter.grad for name, parameter in zip(trainer.names, trainer.parameters, strict=True)}
            assert found.pop("fc2.spare", None) is None, layout
            assert all(grad is not None for grad in found.values()), layout
            trainer.update()
        after = trainer.state_dict()
        assert after["fc2.spare"].tobytes() == before["fc2.spare"].tobytes(), layout
        assert (after["fc2.weight"] != before["fc2.weight"]).any(), layout
        trainer.free()
        mesh.free()

"""Weights whose gradient is a summand on each rank of the model axis: frozen ones, and those inside a user's layer."""

import numpy as np
import pytest

from parallel_dl import nn, optim, splits
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import Mesh
from parallel_dl.trainer import Trainer


def frozen_first():
    network = nn.Sequential(fc1=nn.Linear(6, 5), act=nn.Tanh(), fc2=nn.Linear(5, 3)).initialize(0, "float64")
    for parameter in network.fc1.parameters():
        parameter.requires_grad = False
    return network


class Wrapped(nn.Module):
    """A layer whose weights are those of the layer inside."""

    def __init__(self, features):
        super().__init__()
        self.inner = nn.Linear(features, features)

    def forward(self, x):
        return self.inner(x)

    def output_shape(self, input_shape):
        return input_shape


@splits.rule(Wrapped)
def follows(site):
    return splits.Division(site.before)


def with_a_wrapped_layer():
    return nn.Sequential(
        conv=nn.Conv2d(1, 2, 3), flat=nn.Flatten(), own=Wrapped(32), fc1=nn.Linear(32, 4), fc2=nn.Linear(4, 3)
    ).initialize(0, "float64")


def weights_after(build, shape, layout, mesh, unfreeze=False):
    """Whole weights after two updates with 7 samples."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(7, *shape)), random.integers(0, 3, 7)
    network = build()
    trainer = Trainer(network, lambda p: optim.SGD(p, 0.1, momentum=0.9), layout, mesh, input_shape=shape)
    for step in range(2):
        (batch,) = trainer.loader(x, y, 7, 0).epoch(step)
        trainer.step(batch)
        for parameter in network.fc1.parameters() if unfreeze else ():
            parameter.requires_grad = True
    state = trainer.state_dict()
    trainer.free()
    return state


def require_equal(comm, build, shape, layout, **options):
    mesh = Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp)
    parallel = weights_after(build, shape, layout, mesh, **options)
    mesh.free()
    for name, serial in weights_after(build, shape, Layout(), Mesh.serial(), **options).items():
        np.testing.assert_allclose(parallel[name], serial, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.ranks(2, 4)
def test_the_only_partial_gradients_are_those_of_frozen_weights(comm):
    """Which train after an update: their gradients are then summed as well."""
    split = {"fc1": "samples", "fc2": "output"}
    require_equal(comm, frozen_first, (6,), Layout(dp=comm.size // 2, mp=2, split=split), unfreeze=True)
    require_equal(comm, frozen_first, (6,), Layout(dp=comm.size // 2, mp=2, split=split))


@pytest.mark.ranks(4)
def test_over_which_ranks_they_are_summed(comm):
    """Those of the data and the model axis; what lacks a replica is refused on every rank."""
    mesh = Mesh(comm, data=2, model=2)
    network = nn.Sequential(fc1=nn.Linear(6, 5), fc2=nn.Linear(5, 3)).initialize(0, "float64")
    parallelize(network, mesh.model, (6,), {"fc1": "samples", "fc2": "output"})
    with pytest.raises(InputError, match="is a summand on each rank of the model axis, too"):
        GradientAllReduce(network.parameters(), mesh.data)
    with pytest.raises(InputError, match=r"partial_comm 'model' is without rank \d, which has a replica of fc1.weight"):
        GradientAllReduce(network.parameters(), mesh.data, partial_comm=mesh.model)
    GradientAllReduce(network.parameters(), mesh.data, partial_comm=mesh.over("data", "model")).free()
    mesh.free()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("scheme", ["a", "b", "c"])
def test_weights_inside_a_layer_that_follows_its_input(comm, scheme):
    """They get the whole batch on every rank, and their gradient is to count once."""
    layout = Layout(dp=comm.size, hybrid="owt", scheme=scheme, split={"fc1": "input"})
    require_equal(comm, with_a_wrapped_layer, (1, 6, 6), layout)

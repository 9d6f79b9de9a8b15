"""What parallelize and a divided network refuse: in one line, on every rank, before anything is sent."""

import copy

import numpy as np
import pytest

from parallel_dl import networks, nn, optim
from parallel_dl.autograd import no_grad
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import Mesh
from parallel_dl.trainer import Trainer


def mlp():
    return networks.MLP((6,), 4, hidden=(5, 3))


@pytest.mark.ranks(2)
def test_who_holds_the_weights_already(comm):
    """An optimizer made before would train weights that nobody uses any more."""
    network = mlp()
    optim.SGD(network.parameters(), 0.1)
    with pytest.raises(InputError, match=r"fc1\.weight is already in an optimizer .* call parallelize first"):
        parallelize(network, comm, (6,))
    network = mlp()
    gradients = GradientAllReduce(network.parameters(), comm)
    with pytest.raises(InputError, match="parallelize first"):
        parallelize(network, comm, (6,))
    gradients.free()


@pytest.mark.ranks(2)
def test_a_network_is_divided_once(comm):
    for splits in ({"fc1": "output"}, {"fc3": "input"}):
        network = mlp()
        parallelize(network, comm, (6,), splits)
        for whole in (network, nn.Sequential(network)):
            with pytest.raises(InputError, match="split already"):
                parallelize(whole, comm, (6,), {"fc2": "output"})


@pytest.mark.ranks(3)
def test_ranks_start_alike(comm):
    with pytest.raises(InputError, match="but seed: rank 2 differs from rank 0"):
        parallelize(mlp().initialize(int(comm.rank == 2), fill=False), comm, (6,))
    network = mlp().initialize(0)
    network.fc2.weight.data[0, 0] += comm.rank == 1
    with pytest.raises(InputError, match="but weights: rank 1 differs from rank 0"):
        parallelize(network, comm, (6,))
    with pytest.raises(InputError, match="but splits: rank 1 differs from rank 0"):
        parallelize(mlp(), comm, (6,), {"fc1": "output" if comm.rank != 1 else "input"})


@pytest.mark.ranks(2)
def test_samples_are_those_it_was_divided_for(comm):
    """Tiles of a larger image would be others: what they leave out would be missing without a word."""
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(4, 3))
    parallelize(network, comm, (2, 8, 8), {"0": "rows"})
    with no_grad():
        assert network(np.ones((5, 2, 8, 8), np.float32)).shape == (5, 3)
    for shape in ((4, 2, 12, 8), (4, 2, 5, 8), (2, 8, 8)):
        with pytest.raises(InputError, match=r"divided for samples of \(2, 8, 8\)"):
            network(np.ones(shape, np.float32))


@pytest.mark.ranks(2)
def test_arguments(comm):
    with pytest.raises(InputError, match="input_shape 6: is the shape of one sample"):
        parallelize(mlp(), comm, 6)
    with pytest.raises(InputError, match="are a dictionary"):
        parallelize(mlp(), comm, (6,), "fc1=output")
    parallel = parallelize(mlp(), comm, (6,))
    with pytest.raises(InputError, match=r"pass it to parallelize\(\.\.\., loss=\.\.\.\)"):
        parallel.loss(lambda scores, targets, total: scores)
    with pytest.raises(ValueError, match=r"fc1\.weight has shape \(5, 6\), .* a piece of \(5, 6\)"):
        parallel.network.load_state_dict(mlp().state_dict())
    assert repr(parallel) == f"ModelParallel(rank {comm.rank} of 2, fc1=output, fc2=input, fc3=output)"


@pytest.mark.ranks(2)
def test_a_trainer_takes_the_mesh_of_its_layout(comm):
    sgd = lambda parameters: optim.SGD(parameters, 0.1)  # noqa: E731
    mesh = Mesh(comm, data=2)
    with pytest.raises(InputError, match="is not of this layout, which needs pipe 1 x data 1 x model 2"):
        Trainer(mlp(), sgd, Layout(mp=2), mesh, input_shape=(6,))
    with pytest.raises(ValueError, match="needs input_shape"):
        Trainer(mlp(), sgd, Layout(mp=2), Mesh(comm, model=2))


@pytest.mark.ranks(2)
def test_a_branch_of_the_input_alone(comm):
    """The rank with nothing but an Identity of the network's input has no tensor of its own."""

    def build():
        return nn.Sequential(nn.Branches(nn.Identity(), nn.Linear(6, 6)), nn.Linear(6, 3)).initialize(0, "float64")

    x, y = np.random.default_rng(0).random((4, 6)), np.array([0, 1, 2, 0])
    serial, network = build(), build()
    parallel = parallelize(network, comm, (6,))
    losses = nn.cross_entropy(serial(x), y), parallel.loss(nn.cross_entropy)(network(x), y, 4)
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-12)
    gradients = parallel.gather({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    for name, parameter in serial.named_parameters():
        np.testing.assert_allclose(gradients[name], parameter.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.ranks(2)
def test_backward_after_the_communicator_is_gone(comm):
    """Says so, where MPI would end the process."""
    part = comm.duplicate()
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    parallelize(network, part, (6,), {"1": "output:whole"})
    loss = nn.cross_entropy(network(np.ones((2, 6), np.float32)), np.array([0, 1]))
    part.free()
    with pytest.raises(RuntimeError, match="backward of a replicate whose communicator was freed"):
        loss.backward()


@pytest.mark.ranks(2)
def test_a_copy_talks_to_the_same_ranks(comm):
    network = mlp()
    parallelize(network, comm, (6,), {"fc1": "output", "fc2": "input"})
    x = np.ones((3, 6), np.float32)
    with no_grad():
        assert np.array_equal(copy.deepcopy(network)(x).data, network(x).data)

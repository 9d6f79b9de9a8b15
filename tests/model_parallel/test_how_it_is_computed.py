"""What equality rests on: the method of the whole shape, masks of the whole sample, statistics of all tiles."""

import numpy as np
import pytest
from split_cases import CASES, images

from parallel_dl import nn, optim
from parallel_dl.autograd import Tensor, no_grad, ops
from parallel_dl.convolution import Geometry, choose
from parallel_dl.equivalence import Experiment, assert_same, record
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import Mesh


# -- the method ----------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("way", ["filters", "channels", "rows", "columns", "rows-columns"])
def test_the_method_is_that_of_the_unsplit_shape(comm, way, monkeypatch):
    """32 channels and 4 rows are for winograd4x4; 16 or 8 channels, or 1 row, by themselves would not be."""
    used = []
    convolve = ops.conv2d

    def spy(*arguments, method, **options):
        used.append(method)
        return convolve(*arguments, method=method, **options)

    monkeypatch.setattr(ops, "conv2d", spy)
    shape = (32, 4, 4)
    assert choose(Geometry.of((1, *shape), (32, 32, 3, 3), padding=1), np.float32) == "winograd4x4"
    network = nn.Sequential(conv=nn.Conv2d(32, 32, 3, padding=1)).initialize(0)
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    serial = network(x).data
    used.clear()
    parallel = parallelize(network, comm, shape, {"conv": way})
    with no_grad():
        y = parallel.network(x).data
    assert used == ["winograd4x4"]
    np.testing.assert_allclose(y, serial, rtol=1e-3, atol=1e-4)
    parallel.free()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("method", ["direct", "fft", "winograd", "winograd4x4"])
def test_a_method_that_is_asked_for(comm, method):
    def layers():
        return {
            "conv1": nn.Conv2d(2, 4, 3, padding=1, method=method),
            "tanh": nn.Tanh(),
            "conv2": nn.Conv2d(4, 4, 3, padding=1, groups=2, method=method),
        }

    for conv1, conv2 in (("rows", "filters"), ("filters", "columns"), ("channels", "towers")):
        case = images({"conv1": conv1, "conv2": conv2}, (2, 7, 5), layers)
        what = case.experiment(4, steps=2)
        layout = Layout(mp=comm.size, split=case.splits)
        parallel = record(what, layout, Mesh(comm, model=comm.size))
        if comm.rank == 0:
            assert_same(record(what), parallel)


# -- float32 -------------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("name", ["pair", "lenet", "every way", "rows-columns"])
def test_float32(comm, name):
    """Smooth networks: at a corner of ReLU or of a maximum a rounding error could change a gradient."""
    case = CASES[name]
    what = case.experiment(5, steps=3)
    what.x, what.dtype = what.x.astype(np.float32), "float32"
    parallel = record(what, Layout(mp=comm.size, split=case.splits), Mesh(comm, model=comm.size))
    if comm.rank == 0:
        assert {array.dtype for array in parallel.weights[-1].values()} == {np.dtype(np.float32)}
        assert_same(record(what), parallel)


# -- masks ---------------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2, 3, 4)
def test_masks_are_parts_of_those_of_the_whole_sample(comm):
    """Of dropout on features, on channels and on tiles, of samples in the middle of a batch."""

    def network():
        return nn.Sequential(
            conv=nn.Conv2d(1, 5, 1),
            drop=nn.Dropout(0.5),
            again=nn.Conv2d(5, 5, 1),
            drop2=nn.Dropout(0.5),
            flat=nn.Flatten(),
            fc=nn.Linear(150, 9),
            drop3=nn.Dropout(0.5),
        )

    x = np.random.default_rng(0).standard_normal((3, 1, 5, 6))
    serial = network().initialize(4, "float64")
    with no_grad():
        y = serial.set_position(17, 5)(x).data
    for conv, again, fc in (("rows", "filters", "input"), ("filters", "columns", "output"), ("grid", "rows", "output")):
        splits = {"conv": conv, "again": again, "fc": fc}
        parallel = parallelize(network().initialize(4, "float64"), comm, (1, 5, 6), splits)
        with no_grad():
            ours = parallel.whole_output(parallel.network.set_position(17, 5)(x).data)
            other = parallel.whole_output(parallel.network.set_position(17, 4)(x).data)
        np.testing.assert_array_equal(ours == 0, y == 0)
        np.testing.assert_allclose(ours, y, rtol=1e-10)
        assert ((other == 0) != (y == 0)).any()
        parallel.free()


# -- batch norm ----------------------------------------------------------------------------------------------------
def normalized(statistics):
    return nn.Sequential(
        conv=nn.Conv2d(2, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4, statistics=statistics),
        relu=nn.ReLU(),
        flat=nn.Flatten(),
        fc=nn.Linear(4 * 5 * 3, 3),
    )


def runs(comm, statistics, layout, mesh):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((12, 2, 5, 3)), random.integers(0, 3, 12)
    sgd = lambda parameters: optim.SGD(parameters, 0.05, momentum=0.9)  # noqa: E731
    what = Experiment(lambda: normalized(statistics), x, y, sgd, 6, 4)
    return record(what, layout, mesh)


@pytest.mark.ranks(4, 8)
@pytest.mark.parametrize("way", ["rows", "columns", "filters"])
def test_local_statistics_are_those_of_a_replica(comm, way):
    """2 replicas of several ranks compute what 2 replicas of one rank each do: the tiles of an image are no samples."""
    mp = comm.size // 2
    split = runs(comm, "local", Layout(2, mp, split={"conv": way}), Mesh(comm, data=2, model=mp))
    pair = comm.split(0 if comm.rank < 2 else None)
    if pair is None:
        return
    plain = runs(pair, "local", Layout(2), Mesh(pair, data=2))
    serial = runs(pair, "local", Layout(), None)
    np.testing.assert_allclose(split.losses, plain.losses, rtol=1e-12)
    assert np.abs(np.subtract(split.losses, serial.losses)).max() > 1e-4
    for ours, theirs in ((split.weights, plain.weights), (split.gradients, plain.gradients)):
        for step, others in zip(ours, theirs, strict=True):
            for name, array in others.items():
                np.testing.assert_allclose(step[name], array, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("way", ["rows", "rows-columns", "filters"])
def test_evaluation(comm, way):
    """Without training: running statistics, no dropout, and the same scores as the serial network."""
    network = normalized("global").initialize(0, "float64")
    random = np.random.default_rng(1)
    for buffer in network.buffers():
        buffer[...] = random.uniform(0.5, 2, buffer.shape)
    x = random.standard_normal((3, 2, 5, 3))
    with no_grad():
        y = network.eval()(x).data
    parallel = parallelize(network, comm, (2, 5, 3), {"conv": way, "fc": "input"})
    with no_grad():
        np.testing.assert_allclose(parallel.network.eval()(x).data, y, rtol=1e-12)
    parallel.free()


# -- the gradient of the input -------------------------------------------------------------------------------------
@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize(
    "name",
    [
        "output",
        "input",
        "filters, depthwise",
        "channels",
        "rows",
        "columns",
        "rows-columns, stride",
        "max pool first",
        "unsplit, rows",
        "towers, sum of 3",
        "ends differ",
        "every way",
    ],
)
def test_gradient_of_the_input(comm, name):
    """Of x as a Tensor, which the Trainer never gives: the whole gradient, the same on every rank."""
    case = CASES[name]
    what = case.experiment(4, samples=4)
    serial = case.build().initialize(0, "float64").set_position(0)
    x = Tensor(what.x.copy(), requires_grad=True)
    case.loss(serial(x), what.y, 4).backward()
    parallel = parallelize(case.build().initialize(0, "float64"), comm, case.shape, case.splits, case.loss)
    own = Tensor(what.x.copy(), requires_grad=True)
    parallel.loss(case.loss)(parallel.network.set_position(0)(own), what.y, 4).backward()
    np.testing.assert_allclose(own.grad, x.grad, rtol=1e-9, atol=1e-14)
    parallel.free()

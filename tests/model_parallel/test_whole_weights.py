"""Whole weights and their pieces: from any split to any other, drawn in pieces, digested, and never held in full."""

import gc
import subprocess
import weakref

import numpy as np
import pytest
from conftest import HANG
from split_cases import CASES, Case, chain, images, naming, tied

from parallel_dl import nn, optim
from parallel_dl.layout import Layout
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import Mesh
from parallel_dl.trainer import Trainer


def both():
    """Fully connected layers, convolutions, buffers and branches."""
    return {
        "conv1": nn.Conv2d(2, 6, 3, padding=1),
        "norm": nn.BatchNorm2d(6),
        "conv2": nn.Conv2d(6, 4, 3, groups=2, padding=1),
        "rest": nn.Branches(a=nn.Conv2d(4, 4, 1), b=nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))),
        "pool": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "fc1": nn.Linear(16, 7),
        "tanh": nn.Tanh(),
    }


SHAPE = (2, 5, 4)
SPLITS = {
    "nothing": {},
    "filters, input": {"conv1": "filters", "conv2": "filters", "fc1": "input", "fc": "input"},
    "channels, output": {"conv1": "channels", "conv2": "towers", "fc1": "output", "fc": "output"},
    "rows, towers": {"conv1": "rows", "conv2": "rows-columns", "rest": "towers", "fc1": "output", "fc": "input"},
    "default": None,
}


def network():
    return images({}, SHAPE, both).build()


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def drawn(seed=3, dtype="float32"):
    """A serial network's weights, with buffers that are not what they were at the start."""
    whole = network().initialize(seed, dtype)
    random = np.random.default_rng(seed)
    for array in whole.buffers():
        array[...] = random.random(array.shape)
    return whole.state_dict()


@pytest.mark.ranks(1, 2, 3, 4, 8)
def test_from_any_split_to_any_other(comm):
    state = drawn()
    for name, splits in SPLITS.items():
        parallel = parallelize(network().initialize(0), comm, SHAPE, splits)
        parallel.load_state_dict(state)
        loaded = parallel.state_dict()
        same(loaded, state)
        serial = network().initialize(1)
        serial.load_state_dict(loaded)
        same(serial.state_dict(), state)
        gathered = parallel.gather_state()
        if comm.rank == 0:
            same(gathered, state)
        else:
            assert gathered is None
        own = parallel.network.state_dict()
        for weight, array in own.items():
            np.testing.assert_array_equal(array, state[weight][parallel.piece(weight)], err_msg=f"{name}: {weight}")
        assert sum(p.size for p in parallel.network.parameters()) == parallel.plan.parameters(comm.rank)
        parallel.free()


@pytest.mark.ranks(3)
def test_states_that_do_not_fit(comm):
    state = drawn()
    parallel = parallelize(network(), comm, SHAPE, SPLITS["filters, input"])
    with pytest.raises(ValueError, match=r"conv1\.weight has shape \(5, 2, 3, 3\), expected \(6, 2, 3, 3\)"):
        parallel.load_state_dict({**state, "conv1.weight": state["conv1.weight"][:5]})
    with pytest.raises(KeyError, match=r"missing \['fc\.bias'\]"):
        parallel.load_state_dict({name: array for name, array in state.items() if name != "fc.bias"})
    with pytest.raises(KeyError, match=r"unexpected \['fc9'\]"):
        parallel.load_state_dict({**state, "fc9": np.zeros(1)})


# -- drawn in pieces -----------------------------------------------------------------------------------------------
def wide():
    """More than one tile of the random streams (256 x 256) in either direction, borders inside of tiles."""
    return {"fc1": nn.Linear(300, 530), "tanh": nn.Tanh(), "fc2": nn.Linear(530, 290), "last": nn.Linear(290, 3)}


WIDE = chain({}, (300,), wide)
DRAWN = {
    "output, input": (WIDE, {"fc1": "output", "fc2": "input"}),
    "input, output": (WIDE, {"fc1": "input", "fc2": "output", "last": "input"}),
    "images": (images({}, SHAPE, both), SPLITS["filters, input"]),
    "channels of images": (images({}, SHAPE, both), SPLITS["channels, output"]),
    "towers": (images({}, SHAPE, both), SPLITS["rows, towers"]),
    "tied": (chain({}, (5,), lambda: tied(nn.Linear, 5, 5)), {"a": "output", "b": "output"}),
    "tied, not cut": (
        images({}, (3, 5, 4), lambda: tied(nn.Conv2d, 3, 3, 3, padding=1)),
        {"a": "rows", "b": "rows"},
    ),
    "tied, unsplit": (CASES["tied, not split"], CASES["tied, not split"].splits),
    "one block twice": (CASES["one block twice"], CASES["one block twice"].splits),
}


def initialized(case: Case, how: str, comm=None, splits=None):
    """The case's network, split if there are ranks; its weights drawn before that, after it, or when they are read."""
    whole, parallel = case.build(), None
    if how == "lazily":
        whole.initialize(7, "float64", fill=False)
    if how == "before":
        whole.initialize(7, "float64")
    if comm is not None:
        parallel = parallelize(whole, comm, case.shape, splits)
    if how == "after":
        whole.initialize(7, "float64")
    return whole if parallel is None else parallel


@pytest.mark.ranks(1, 2, 3, 8)
@pytest.mark.parametrize("how", ["before", "after", "lazily"])
def test_weights_are_those_of_the_serial_network(comm, how):
    for name, (case, splits) in DRAWN.items():
        parallel = initialized(case, how, comm, splits)
        state = parallel.state_dict()
        if comm.rank == 0:  # which all ranks have gathered
            with naming(name):
                same(state, initialized(case, how).state_dict())
        parallel.free()


@pytest.mark.ranks(1, 2, 3, 8)
@pytest.mark.parametrize("name", ["output, input", "channels of images", "towers", "tied"])
def test_the_digest_is_that_of_the_serial_network(comm, name):
    case, splits = DRAWN[name]
    sgd = lambda parameters: optim.SGD(parameters, 0.1)  # noqa: E731
    serial = Trainer(initialized(case, "before"), sgd, Layout(), Mesh.serial())
    layout = Layout(mp=comm.size, split=splits)
    trainer = Trainer(initialized(case, "before"), sgd, layout, Mesh(comm, model=comm.size), input_shape=case.shape)
    digest = trainer.weights_sha256()
    assert digest == serial.weights_sha256()
    same(trainer.state_dict(), serial.state_dict())
    if comm.rank == comm.size - 1:  # one bit of one weight, if this rank has one that is not of all
        for weight in trainer.network.parameters():
            if weight.piece is not None and weight.size:
                weight.data.reshape(-1)[-1] = np.nextafter(weight.data.reshape(-1)[-1], 2.0)
                break
    changed = comm.all_gather_object(
        comm.rank == comm.size - 1 and any(p.piece is not None and p.size for p in trainer.network.parameters())
    )
    assert (trainer.weights_sha256() != digest) == any(changed)
    trainer.free()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("block", [1, 50, 200, 1000])
def test_the_digest_of_weights_that_are_gathered_in_parts(comm, monkeypatch, block):
    """Of some rows at a time, the last of them fewer, of weights that are cut by rows and by columns."""
    monkeypatch.setattr("parallel_dl.whole._BLOCK", block)
    layers = lambda: nn.Sequential(nn.Linear(5, 11), nn.Linear(11, 9), nn.Linear(9, 7))  # noqa: E731
    sgd = lambda parameters: optim.SGD(parameters, 0.1)  # noqa: E731
    serial = Trainer(layers().initialize(0, "float64"), sgd, Layout(), Mesh.serial())
    layout = Layout(mp=comm.size, split={"0": "output", "1": "input", "2": "output"})
    mesh = Mesh(comm, model=comm.size)
    trainer = Trainer(layers().initialize(0, "float64"), sgd, layout, mesh, input_shape=(5,))
    assert trainer.weights_sha256() == serial.weights_sha256()
    trainer.free()
    mesh.free()


@pytest.mark.ranks(2)
def test_a_filled_network_leaves_nothing_behind(comm):
    """Neither the plan nor anything else keeps the whole weights alive."""
    whole = network().initialize(0)
    data = {name: weakref.ref(p.data) for name, p in whole.named_parameters()}
    parallel = parallelize(whole, comm, SHAPE, SPLITS["filters, input"])
    gc.collect()
    assert {name for name, array in data.items() if array() is None} == {name for name in data if parallel.piece(name)}
    parallel.free()


# -- memory --------------------------------------------------------------------------------------------------------
# in processes of their own: the peak of a process never goes down again
PROGRAM = """
import resource, sys
from parallel_dl import nn
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import world

width, way, comm = int(sys.argv[1]), sys.argv[2], world()
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
parallelize(nn.Sequential(fc=nn.Linear(8, 8)), comm, (8,)).network.initialize()
before = peak()
network = parallelize(nn.Sequential(fc=nn.Linear(width, width)), comm, (width,), {"fc": way}).network
for parameter in network.parameters():
    parameter.data
grown = comm.all_gather_object((peak() - before, network[0].weight.data.nbytes))
if comm.rank == 0:
    print(*(f"{number} {share}" for number, share in grown), sep="\\n")
"""


def grown(width, way, tmp_path, python):
    """For each of 4 ranks: (by how many bytes its peak has grown with the layer made and filled, bytes of its part)."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [python, "-m", "parallel_dl", "run", "-n", "4", str(program), str(width), way]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
    assert run.returncode == 0, run.stderr
    return [tuple(map(int, line.split())) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("width", [4000, pytest.param(20_000, marks=pytest.mark.grid)])
@pytest.mark.parametrize("way", ["output", pytest.param("input", marks=pytest.mark.grid)])
def test_no_rank_ever_holds_a_whole_weight(width, way, tmp_path, environment, python):
    """Of 400 MB of float32, say, each of 4 ranks has 100, and has never had more than 130."""
    for number, share in grown(width, way, tmp_path, python):
        assert share == width * width // 4 * 4
        assert share < number < 1.3 * share

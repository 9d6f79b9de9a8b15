"""`parallel-dl train --reproducible`: one digest for every layout, and what it refuses, in one line."""

import json
import subprocess
import sys

import pytest
from conftest import HANG, ROOT

from parallel_dl.cli import main
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.networks import create
from parallel_dl.optim import SGD
from parallel_dl.schedule import SCHEDULES, is_asynchronous
from parallel_dl.trainer import Trainer

LAYOUTS = [("--dp", "2"), ("--mp", "2")]


def train(*arguments):
    command = [sys.executable, "-m", "parallel_dl", "train", *arguments, "--reproducible", "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    facts = json.loads(run.stdout)
    assert facts["layout"]["reproducible"] is True
    return facts["weights_sha256"], facts["losses"], facts["test_accuracy"]


def test_twenty_steps(environment):
    arguments = ("mlp", "--steps", "20", "--microbatches", "2", "--batch-size", "50")
    alone = train(*arguments)
    assert len(alone[1]) == 20
    for layout in LAYOUTS:
        assert train(*arguments, *layout) == alone, layout


@pytest.mark.grid
@pytest.mark.parametrize("network", ["mlp", "mlp_deep", "lenet5_small", "alexnet_small"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_twenty_steps_of_each_network(environment, network, dtype):
    arguments = (network, "--steps", "20", "--microbatches", "2", "--dtype", dtype)
    alone = train(*arguments)
    more = [
        ("--mp", "4"),
        ("--mp", "2", "--pp", "2"),
        ("--dp", "2", "--mp", "2", "--pp", "2"),
        ("--dp", "8"),
        ("--pp", "3"),
    ]
    for layout in (*LAYOUTS, *more):
        assert train(*arguments, *layout) == alone, layout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mlp", "--dp", "3"], "--dp 3: must be one of 1, 2, 4, 8 with --reproducible"),
        (["mlp", "--mp", "16"], "--mp 16: must be one of 1, 2, 4, 8 with --reproducible"),
        (
            ["mlp", "--allreduce", "mpi"],
            "--allreduce mpi: --reproducible sums in its own fixed tree; use only one of the two",
        ),
        (["lenet5_small", "--hybrid", "owt"], "--hybrid owt: cannot be combined with --reproducible"),
        (["mlp", "--pp", "2", "--schedule", "pipedream"], "--schedule pipedream: --reproducible needs one update per"),
        (
            ["lenet5_small", "--mp", "2", "--split", "features=rows"],
            "split conv1=rows: --reproducible divides only channels and features; valid for conv1: filters, channels",
        ),
        (
            ["alexnet_small", "--mp", "2", "--split", "conv2=towers"],
            "split conv2=towers: --reproducible divides only channels and features; valid for conv2: filters",
        ),
    ],
)
def test_refusals(environment, capfd, arguments, said):
    status = main(["train", *arguments, "--reproducible"])
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_layers_whose_sums_are_not_in_leaves():
    from parallel_dl import nn
    from parallel_dl.reproducible import cut_into_leaves

    network = nn.Sequential(conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2, statistics="local"))
    with pytest.raises(InputError, match=r"layer norm: reproducible cannot add up a BatchNorm2d's sums in the same"):
        cut_into_leaves(network, (1, 5, 5))
    shared = nn.Linear(12, 12)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), shared, nn.ReLU(), shared)  # channels in leaves, then 12
    with pytest.raises(InputError, match=r"2 and 4 are one layer, but their inputs are cut into different leaves"):
        cut_into_leaves(network, (3, 2, 2))
    cut_into_leaves(nn.Sequential(nn.Linear(12, 12), shared, nn.ReLU(), shared), (12,))


def test_branches_are_not_given_to_ranks():
    from parallel_dl import nn, splits
    from parallel_dl.reproducible import cut_into_leaves

    network = nn.Sequential(both=nn.Branches(nn.Identity(), nn.Conv2d(1, 1, 1)), flat=nn.Flatten())
    assert splits.plan(network, (1, 5, 5), 2).splits == {"both": "towers"}
    cut_into_leaves(network, (1, 5, 5))
    assert splits.plan(network, (1, 5, 5), 2).splits == {"both.1": "filters"}
    with pytest.raises(InputError, match=r"split both=towers: reproducible .* valid for both: none"):
        splits.plan(network, (1, 5, 5), 2, {"both": "towers"})


def test_layouts_that_cannot_be():
    assert list(filter(is_asynchronous, SCHEDULES)) == ["pipedream"]  # what Layout refuses
    with pytest.raises(InputError, match="mp 6"):
        Layout(mp=6, reproducible=True)
    layout, network = Layout(reproducible=True), create("mlp", (1, 8, 8), 10)
    with pytest.raises(ValueError, match="needs input_shape"):
        Trainer(network, SGD, layout, Mesh.serial())
    with pytest.raises(InputError, match=r"all-reduce method 'mpi': a reproducible layout sums in its own tree"):
        Trainer(network, SGD, layout, Mesh.serial(), "mpi", input_shape=(1, 8, 8))

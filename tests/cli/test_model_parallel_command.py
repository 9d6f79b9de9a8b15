"""`parallel-dl train --mp`: what it prints, writes, counts and refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file
from test_commands import call, mpirun

from parallel_dl import checkpoint
from parallel_dl.cli import main


def train(network, *arguments, **options):
    status, out, err = call("train", network, "--json", *arguments, **options)
    assert (status, err) == (0, ""), err
    return json.loads(out, parse_constant=pytest.fail)


@pytest.fixture
def refused(capsys):
    """refused(*arguments) -> the one line on stderr; no rank is started for it, so it runs in this process."""

    def run(*arguments):
        assert main(["train", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("parallel-dl: ")
        assert err.count("\n") == 1
        return err.removeprefix("parallel-dl: ").strip()

    return run


@pytest.mark.grid
@pytest.mark.parametrize("name", [pytest.param("lenet5_small", marks=pytest.mark.grid), "alexnet_small"])
def test_losses_do_not_depend_on_the_split(name):
    common = ("--steps", 4, "--batch-size", 30, "--dtype", "float64", "--seed", 3)
    alone = train(name, *common)
    split = train(name, *common, "--tp", 2, "--dp", 2)
    np.testing.assert_allclose(split["losses"], alone["losses"], rtol=1e-10)
    assert split["test_accuracy"] == alone["test_accuracy"]


def test_the_ledger():
    """The pair fc2, fc3: one all-reduce forward and one backward for each of 2 steps x 3 microbatches."""
    flags = ("--mp", 2, "--dp", 2, "--steps", 2, "--batch-size", 24, "--microbatches", 3, "--allreduce", "mpi")
    pair = ("--split", "fc2=column", "--split", "fc3=row")
    run = train("mlp", *flags, *pair, "--ledger")
    split = {"fc2": "output", "fc3": "input"}
    assert run["layout"] == {"dp": 2, "mp": 2, "pp": 1, "schedule": None, "microbatches": 3, "split": split}
    assert run["ranks"] == 4
    keys = ["rank", "axis", "layer", "direction", "call", "messages", "values", "bytes", "shared_memory_bytes"]
    assert all(list(row) == keys for row in run["ledger"])
    for rank in range(4):
        rows = [list(row.values())[2:7] for row in run["ledger"] if row["rank"] == rank and row["axis"] == "model"]
        assert sorted(rows) == [
            ["fc2", "backward", "all_reduce", 6, 2 * 12 * 128],
            ["fc3", "forward", "all_reduce", 6, 2 * 12 * 10],
        ]
        (gradients,) = [row for row in run["ledger"] if row["rank"] == rank and row["layer"] == "gradients"]
        assert (gradients["axis"], gradients["direction"], gradients["messages"]) == ("data", "backward", 2)
        assert gradients["bytes"] == 4 * gradients["values"] > 0
    shared = train("mlp", *flags[:-1], "window", "--ledger")["ledger"]
    windows = [row for row in shared if row["layer"] == "gradients"]
    assert len(windows) == 4
    assert all(row["shared_memory_bytes"] and not row["bytes"] and not row["messages"] for row in windows)


def test_the_ledger_for_people():
    status, out, err = call("train", "alexnet_small", "--mp", 2, "--steps", 1, "--batch-size", 1, "--ledger")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["0", "model", "conv3", "forward", "all_gather", "1", "128", "512", "0"] in lines
    assert "the payload" in out


@pytest.mark.grid
def test_the_logistic_loss_sends_nothing():
    common = ("--loss", "logistic", "--steps", 3, "--dtype", "float64")
    split = train("mlp", "--mp", 3, *common, "--ledger")
    assert split["layout"]["split"] == {"fc1": "output", "fc2": "input", "fc3": "output"}
    np.testing.assert_allclose(split["losses"], train("mlp", *common)["losses"], rtol=1e-10)
    assert "loss" not in {row["layer"] for row in split["ledger"]}


@pytest.mark.grid
def test_weights_from_any_split_to_any_other(tmp_path, refused):
    file, again = tmp_path / "w.safetensors", tmp_path / "again.safetensors"
    first = train("alexnet_small", "--mp", 3, "--steps", 2, "--dtype", "float64", "--output", file)
    rate = ("--lr", 0, "--steps", 1, "--dtype", "float64", "--weights", file, "--output", again)
    for flags in ((), ("--mp", 4, "--split", "features=rows", "--split", "classifier=input")):
        second = train("alexnet_small", *rate, *flags)
        assert second["weights_sha256"] == first["weights_sha256"]
        saved, read = checkpoint.load(file), checkpoint.load(again)
        assert all(np.array_equal(saved[name], read[name]) for name in saved | read)
    message = refused("lenet5_small", "--mp", 2, "--weights", file)
    assert message == f"--weights {file}: conv1.weight has shape (32, 1, 5, 5), this network needs (6, 1, 5, 5)"
    assert refused("mlp", "--weights", file).startswith(f"--weights {file}: has no fc1.weight (128, 64)")
    assert "--weights" in refused("mlp", "--weights", tmp_path / "none")
    (tmp_path / "broken").write_text("no weights")
    assert "--weights" in refused("mlp", "--weights", tmp_path / "broken")
    save_file({name: array.astype(bool) for name, array in checkpoint.load(file).items()}, tmp_path / "bool")
    assert "conv1.weight is BOOL; expected one of F16, F32, F64" in refused(
        "alexnet_small", "--weights", tmp_path / "bool"
    )


def test_output_is_a_file_or_a_link_to_one(tmp_path, refused):
    assert "--output /dev/null" in refused("mlp", "--output", "/dev/null")
    assert not Path("/dev/null").is_file()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there")
    checkpoint.save(link, {"a": np.ones(2)}, {})
    assert link.is_symlink()
    assert checkpoint.load(tmp_path / "there")["a"].tolist() == [1, 1]


@pytest.mark.grid
def test_the_example_is_the_same_run_on_any_ranks():
    """Alone, and on 2 x 2 ranks."""
    example = ROOT / "docs" / "examples" / "data_and_model.py"
    alone, many = call(example, command=[sys.executable]), call("run", "-n", 4, example)
    assert (alone[0], many[0]) == (0, 0), alone + many
    ours, theirs = (
        [float(word.strip("%")) for word in run[1].split() if word[-1] in "%0123456789"] for run in (alone, many)
    )
    assert len(ours) == 2 * 10 + 1
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)


@pytest.mark.grid
def test_inside_a_users_own_mpirun():
    status, out, _ = call("train", "mlp", "--mp", 2, "--steps", 1, "--json", command=mpirun(4))
    assert status == 0
    layout = json.loads(out)["layout"]
    assert (layout["dp"], layout["mp"]) == (2, 2)
    status, out, err = call("train", "mlp", "--mp", 2, "--json", command=mpirun(3))
    assert (status, out.strip()) == (2, "")
    line = "parallel-dl: --mp 2: needs 2 ranks, but mpirun started 3; use --mp 1 or 3"
    assert err.count(line) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("mlp", "--mp", "0"), ("--mp 0", "at least 1")),
        (("mlp", "--mp", "1025"), ("--mp 1025", "must be at most 1024")),
        (("mlp", "--mp", "2", "--split", "fc1"), ("--split fc1", "LAYER=HOW")),
        (("mlp", "--split", "fc1=output"), ("--split fc1=output", "--mp")),
        (("mlp", "--mp", "2", "--split", "fc9=output"), ("--split fc9=output", "no layer fc9", "fc1, fc2, fc3")),
        (("mlp", "--mp", "2", "--split", "fc1=rows"), ("--split fc1=rows", "did you mean fc1=output?")),
        (("mlp", "--mp", "2", "--split", "relu1=output"), ("relu1", "follows its input")),
        (("mlp", "--mp", "2", "--split", "fc1=output:split"), ("fc1", "fc2 needs it whole", "fc2=input")),
        (("lenet5_small", "--mp", "2", "--split", "conv1=output"), ("did you mean conv1=filters?",)),
        (("alexnet_small", "--mp", "2", "--split", "conv2=channels"), ("2 groups", "did you mean conv2=filters?")),
        (("lenet5_small", "--mp", "2", "--split", "conv1=3x1"), ("3 x 1 tiles do not fit 2 ranks",)),
        (("mlp", "--loss", "hinge"), ("--loss", "cross-entropy, logistic")),
    ],
)
def test_bad_input(refused, flags, words):
    message = refused(*flags)
    assert all(word in message for word in words), message


OWN = """from parallel_dl import nn
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter((64, 10), nn.initializers.uniform(0.1))
    def forward(self, x): return x @ self.w
    def output_shape(self, s): return (10,)
net = lambda shape, classes: nn.Sequential(flatten=nn.Flatten(), own=Own())
"""


@pytest.mark.parametrize("split", [(), ("--split", "own=samples")], ids=["nothing", "samples"])
def test_a_line_when_no_layer_is_split(tmp_path, monkeypatch, split):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    status, out, err = call("train", "own.py:net", "--mp", 2, "--steps", 1, "--json", *split)
    assert (status, out.count("\n")) == (0, 1), err
    does = "no layer is split, so each rank computes all of the network; possible are --split own=samples"
    assert err == ("" if split else f"parallel-dl: --mp 2: {does}\n")

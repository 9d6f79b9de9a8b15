"""`--hybrid owt` on the command line: `train`, `summary`, and what both refuse before a rank is started."""

import json

import numpy as np
import pytest
from test_commands import call, mpirun

from parallel_dl import checkpoint
from parallel_dl.cli import main

FLAGS = ("--steps", 3, "--dtype", "float64", "--batch-size", 50)


def train(network, *arguments, **options):
    status, out, err = call("train", network, "--json", *arguments, **options)
    assert (status, err) == (0, ""), err
    return json.loads(out, parse_constant=pytest.fail)


def test_a_hybrid_is_the_serial_run(tmp_path):
    """The same losses and accuracy, and weights in the file that a serial run goes on from."""
    alone = train("alexnet_small", *FLAGS, "--output", tmp_path / "alone")
    hybrid = train(
        "alexnet_small", *FLAGS, "--hybrid", "owt", "--scheme", "c", "--ranks", 3, "--output", tmp_path / "hybrid"
    )
    np.testing.assert_allclose(hybrid["losses"], alone["losses"], rtol=1e-10)
    assert hybrid["test_accuracy"] == alone["test_accuracy"]
    assert hybrid["ranks"] == hybrid["layout"]["dp"] == 3
    assert hybrid["layout"]["hybrid"] == {"name": "owt", "scheme": "c", "variable_batch": False}
    assert hybrid["layout"]["split"] == {"fc6": "output", "fc7": "input", "fc8": "output"}
    assert "hybrid" not in alone["layout"]
    ours, theirs = (checkpoint.load(tmp_path / name) for name in ("alone", "hybrid"))
    for name in ours | theirs:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-8, atol=1e-12)
    again = train(
        "alexnet_small", "--weights", tmp_path / "hybrid", "--lr", 0, "--steps", 1, "--dtype", "float64",
        "--hybrid", "owt", "--ranks", 2,
    )  # fmt: skip
    assert again["weights_sha256"] == hybrid["weights_sha256"]
    assert again["layout"]["hybrid"]["scheme"] == "a"


@pytest.mark.grid
def test_inside_a_users_own_mpirun():
    """--ranks may be left out; another number is refused by one line."""
    flags = ("--hybrid", "owt", "--scheme", "b", "--variable-batch", "--steps", 1, "--ledger", "--json")
    status, out, _ = call("train", "lenet5_small", *flags, command=mpirun(2))
    assert status == 0
    run = json.loads(out)
    assert (run["ranks"], run["layout"]["hybrid"]["variable_batch"]) == (2, True)
    assert {row["layer"] for row in run["ledger"]} >= {"activations", "targets", "gradients"}
    status, out, err = call("train", "lenet5_small", *flags, "--ranks", 3, command=mpirun(2))
    assert (status, out.strip()) == (2, "")
    assert err.count("parallel-dl: --ranks 3: mpirun started 2; use --ranks 2") == 1


def test_the_table_says_so(capsys):
    flags = ("--hybrid", "owt", "--scheme", "b", "--variable-batch", "--ranks", "1", "--steps", "1")
    assert main(["train", "alexnet_small", *flags]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "one weird trick, scheme b, fully connected layers updated after each sub-batch" in out
    assert "(features data parallel 1, classifier model parallel 1, microbatches 1)" in " ".join(out.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("alexnet_small", "--hybrid", "otw"), "unknown --hybrid 'otw': did you mean 'owt'?"),
        (("alexnet_small", "--hybrid", "owt", "--scheme", "d"), "unknown --scheme 'd': expected one of a, b, c"),
        (("mlp", "--hybrid", "owt", "--ranks", "2"), "no convolution is before the first Flatten"),
        (("alexnet_small", "--ranks", "2"), "--ranks 2: needs --hybrid owt"),
        (("alexnet_small", "--scheme", "b"), "--scheme b: needs --hybrid"),
        (("alexnet_small", "--variable-batch"), "--variable-batch: needs --hybrid"),
        (("alexnet_small", "--hybrid", "owt", "--dp", "2"), "--dp 2: cannot be combined with --hybrid owt"),
        (("alexnet_small", "--hybrid", "owt", "--mp", "2"), "--mp 2: cannot be combined with --hybrid owt"),
        (("alexnet_small", "--hybrid", "owt", "--pp", "2"), "--pp 2: cannot be combined with --hybrid owt"),
        (
            ("alexnet_small", "--hybrid", "owt", "--scheme", "c", "--variable-batch", "--microbatches", "2"),
            "--microbatches 2: must be 1 with --variable-batch",
        ),
        (("alexnet_small", "--hybrid", "owt", "--schedule", "gpipe"), "--schedule gpipe: needs a pipeline"),
        (("alexnet_small", "--hybrid", "owt", "--ranks", "0"), "--ranks 0: must be at least 1"),
        (("alexnet_small", "--hybrid", "owt", "--ranks", "2", "--variable-batch"), "needs --scheme b or c"),
        (("alexnet_small", "--hybrid", "owt", "--split", "conv1=rows"), "--split conv1=rows: there is no layer conv1"),
        (("alexnet_small", "--hybrid", "owt", "--split", "fc6=rows"), "did you mean fc6=output?"),
    ],
)
def test_bad_input_of_train(capsys, flags, words):
    refused("train", capsys, flags, words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("alexnet", "--hybrid", "otw"), "did you mean 'owt'?"),
        (("alexnet", "--ranks", "2"), "--ranks 2: needs --hybrid"),
        (("alexnet", "--hybrid", "owt", "--mp", "2"), "--mp 2: cannot be combined with --hybrid owt"),
        (("mlp", "--hybrid", "owt"), "no convolution is before the first Flatten"),
        (("alexnet", "--hybrid", "owt", "--ranks", "2", "--split", "fc9=output"), "--split fc9=output"),
    ],
)
def test_bad_input_of_summary(capsys, flags, words):
    refused("summary", capsys, flags, words)


def refused(command, capsys, flags, words):
    assert main([command, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("parallel-dl: ")
    assert err.count("\n") == 1
    assert words in err, err


def test_summary(capfd):
    """Of AlexNet on 8 ranks with 128 images each; tests/hybrid holds the numbers against counted runs."""
    flags = ("--batch-size", "1024", "--hybrid", "owt", "--ranks", "8")
    assert main(["summary", "alexnet", *flags, "--json"]) == 0
    found = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)["hybrid"]
    assert list(found) == [
        *("name", "ranks", "batch_size", "data_parallel_bytes", "hybrid_bytes", "activations", "activation_gradients"),
        *("targets", "fully_connected", "loss", "convolution_gradients"),
    ]
    assert (found["ranks"], found["batch_size"]) == (8, 1024)
    assert found["hybrid_bytes"] == sum(found[key] for key in list(found)[5:])
    assert found["activations"] == 4 * 7 * 128 * 9216
    assert main(["summary", "alexnet", *flags]) == 0
    out = capfd.readouterr().out
    assert "alexnet on 8 ranks: one weird trick" in out
    assert f"{found['data_parallel_bytes']:,}" in out
    assert f"{found['hybrid_bytes']:,}" in out
    assert main(["summary", "alexnet", "--json"]) == 0
    assert "hybrid" not in json.loads(capfd.readouterr().out)

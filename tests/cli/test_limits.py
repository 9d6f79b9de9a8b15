"""Numbers that cannot be right are refused in one short line, at once; odd ones are reported."""

import json
import time

import numpy as np
import pytest
from test_commands import call

from parallel_dl import launch
from parallel_dl.cli import main

NINES = "9" * 400
TRAIN, VERIFY, SUMMARY = ("train", "mlp"), ("verify", "mlp", "--ranks", "2"), ("summary", "mlp")

REFUSED = [
    (*TRAIN, "--batch-size", "99999999999", "must be at most 2147483647"),
    (*TRAIN, "--batch-size", NINES, "must be at most 2147483647"),
    (*TRAIN, "--epochs", NINES, "must be at most 2147483647"),
    (*TRAIN, "--steps", "2147483648", "must be at most 2147483647"),
    (*TRAIN, "--warmup", NINES, "must be at most 2147483647"),
    (*TRAIN, "--seed", NINES, "must be in 0..2**63-1"),
    (*TRAIN, "--dp", NINES, "..."),
    (*TRAIN, "--mp", NINES, "must be at most 1024"),
    (*TRAIN, "--pp", NINES, "at most 100,000 forward passes"),
    (*TRAIN, "--pp", "2", "--chunks", NINES, "applies only to interleaved"),
    (*TRAIN, "--microbatches", "100000000", "a batch has 64 samples; expected 1 to 64"),
    (*TRAIN, "--microbatches", "65", "a batch has 64 samples; expected 1 to 64"),
    (*TRAIN, "--microbatches", "2000", "--batch-size", "3000", "a batch has 1,437 samples; expected 1 to 1437"),
    (*TRAIN, "--pp", "2", "--microbatches", "100000000", "expected 1 to 64"),
    (*TRAIN, "--hybrid", "owt", "--ranks", NINES, "must be at most 1024"),
    (*TRAIN, "--epochs", "1e3", "--epochs '1e3': must be a whole number"),
    (*TRAIN, "--epochs=1e3", "--epochs '1e3': must be a whole number"),
    (*TRAIN, "--epochs", "3", "--epochs", "x y " * 99, "must be a whole number"),
    (*TRAIN, "--lr", "fast", "--lr 'fast': must be a number"),
    (*TRAIN, "--tp", "two", "--tp 'two': must be a whole number"),
    (*TRAIN, "--lr", "-" + NINES, "--lr"),
    (*TRAIN, "--epochs", "9" * 5000, "must be a whole number"),
    (*VERIFY, "--batch-size", "1000000000", "must be at most 65536"),
    (*VERIFY, "--batch-size", NINES, "must be at most 65536"),
    ("verify", "lenet5_small", "--ranks", "2", "--batch-size", "99999999999999999999", "must be at most 65536"),
    ("verify", "vgg16", "--ranks", "2", "--batch-size", "65536", "--batch-size 65536: would take"),
    ("verify", "vgg16", "--ranks", "2", "--batch-size", "65536", "--exact", "--batch-size 65536: would take"),
    (*VERIFY, "--steps", "1000000000", "must be at most 10000"),
    (*VERIFY, "--microbatches", "100000000", "must be at most 13"),
    ("verify", "mlp", "--dp", "2", "--microbatches", "14", "must be at most 13"),
    ("verify", "mlp", "--ranks", NINES, "must be at most 1024"),
    (*SUMMARY, "--batch-size", NINES, "must be at most 2147483647"),
    (*SUMMARY, "--json", "--batch-size", NINES, "must be at most 2147483647"),
    (*SUMMARY, "--mp", NINES, "must be at most 1024"),
    (*SUMMARY, "--pp", NINES, "must be at most 9223372036854775807"),
    (*SUMMARY, "--pp", "2", "--microbatches", "100000000", "at most 100,000 forward passes"),
    (*SUMMARY, "--pp", "2", "--cache-bytes", NINES, "must be at most 9223372036854775807"),
    ("schedule", "1f1b", "--pp", NINES, "--microbatches", NINES, "at most 100,000 forward passes"),
    ("run", "-n", NINES, __file__, "must be at most 1024"),
    ("run", "-n", "two", __file__, "-n 'two': must be a whole number"),
]


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda a: " ".join(a)[:60])
def test_what_cannot_be_right(monkeypatch, capfd, arguments):
    if "--dp" not in arguments:
        monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("ranks were started"))
    *arguments, said = arguments
    status = main(arguments)
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert len(err) < 400
    assert "9" * 81 not in err
    assert "x y" * 21 not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("mlp", "--dataset"),
        ("mlp", "--data-dir"),
        ("mlp", "--loss"),
        ("mlp", "--optimizer"),
        ("mlp", "--dtype"),
        ("mlp", "--schedule"),
        ("mlp", "--pp", "2", "--stage"),
        ("mlp", "--pp", "2", "--schedule"),
        ("mlp", "--mp", "2", "--split"),
        ("mlp", "--hybrid"),
        ("mlp", "--hybrid", "owt", "--scheme"),
        ("mlp", "--weights"),
        ("mlp", "--output"),
        ("mlp", "--layout"),
        ("mlp", "--lr-policy"),
        ("mlp", "--allreduce"),
        (),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("value", ["z" * 10_000, "z y " * 2500, "z=" * 5000, "z=z " * 2500], ids=range(4))
def test_long_values_are_not_repeated(capfd, arguments, value):
    assert main(["train", *arguments, value]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.count("z") <= 2 * 80  # a flag, and what is wrong with it
    assert len(err) < 600


def test_a_summary_of_many_ranks_is_quick(capfd):
    for arguments in (("vgg16", "--mp", "1000"), ("alexnet", "--hybrid", "owt", "--ranks", "1000")):
        start = time.process_time()
        assert main(["summary", *arguments, "--json"]) == 0
        assert time.process_time() - start < 20  # it took minutes
        json.loads(capfd.readouterr()[0])


def test_what_is_odd_is_said():
    status, out, err = call("train", "mlp", "--batch-size", 5000, "--steps", 1, "--json")
    assert (status, json.loads(out)["batch_size"]) == (0, 5000)
    assert err == "parallel-dl: --batch-size 5000: a batch holds all 1,437 training samples\n"


@pytest.fixture
def regression(tmp_path):
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 5))
    y = x @ random.standard_normal((5, 2))
    np.savez(tmp_path / "r.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dataset", "{}/r.npz"), "--loss cross-entropy: the targets of "),
        (("--dataset", "{}/r.npz"), "floats of shape (2,), not class numbers; use --loss mse to predict values, "),
        (("--dataset", "{}/r.npz", "--loss", "logistic"), "and not all in 0..1; use --loss mse"),
        (("--loss", "mse"), "--loss mse: the targets of digits are class numbers; use --loss cross-entropy"),
        (("--loss", "mes"), "unknown --loss 'mes': did you mean 'mse'? expected one of cross-entropy, logistic, mse"),
    ],
)  # fmt: skip
def test_a_loss_and_targets_that_do_not_fit(regression, capfd, arguments, said):
    assert main(["train", "mlp", "--dp", "2", *(part.format(regression) for part in arguments)]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_network_that_has_other_outputs(regression, capfd):
    x, y = np.zeros((4, 1, 28, 28)), np.zeros((4, 3))
    np.savez(regression / "b.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert main(["train", "lenet5", "--loss", "mse", "--dataset", str(regression / "b.npz")]) == 2
    assert "gives 10 values for a sample, but a target has 3; try lenet5_small" in capfd.readouterr()[1]


def test_a_regression(regression):
    """In JSON the accuracy is null, in the table there is none; two ranks report what one does."""
    command = ("train", "mlp", "--dataset", regression / "r.npz", "--loss", "mse", "--steps", 9, "--dtype", "float64")
    runs = []
    for more in ((), ("--dp", 2, "--microbatches", 3)):
        status, out, err = call(*command, "--lr", 0.01, *more, "--json")
        assert (status, err) == (0, "")
        runs.append(json.loads(out, parse_constant=pytest.fail))
    for run in runs:
        assert run["test_accuracy"] is None
        np.testing.assert_allclose(run["losses"], runs[0]["losses"], rtol=1e-10)
        assert run["test_loss"] == pytest.approx(runs[0]["test_loss"], rel=1e-10)
    status, out, err = call(*command, "--lr", 0.01)
    assert (status, err) == (0, "")
    assert f"{runs[0]['test_loss']:.6f}" in out
    assert "none: the targets are not classes" in out
    status, out, err = call("verify", "mlp", "--mp", 2, "--dataset", regression / "r.npz", "--steps", 2, "--json")
    assert (status, json.loads(out)["equal"]) == (0, True), err

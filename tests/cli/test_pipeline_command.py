"""`parallel-dl train --pp`: what it prints and writes, and what it refuses before a rank is started."""

import json

import numpy as np
import pytest
from test_commands import call, mpirun

from parallel_dl import checkpoint
from parallel_dl.cli import main


def train(network, *arguments, **options):
    status, out, err = call("train", network, "--json", *arguments, **options)
    assert (status, err) == (0, ""), err
    return json.loads(out, parse_constant=pytest.fail)


def test_a_pipeline_is_the_serial_run(tmp_path):
    """The same losses, to the last bit, and the same weights in the file."""
    common = ("--steps", 3, "--dtype", "float64", "--microbatches", 3, "--batch-size", 50, "--output")
    alone = train("mlp_deep", *common, tmp_path / "alone")
    piped = train("mlp_deep", *common, tmp_path / "piped", "--pp", 3, "--schedule", "zb-h1")
    assert piped["losses"] == alone["losses"]
    assert piped["test_accuracy"] == alone["test_accuracy"]
    assert piped["weights_sha256"] == alone["weights_sha256"]
    layout = {"dp": 1, "mp": 1, "pp": 3, "schedule": "zb-h1", "microbatches": 3, "split": {}}
    assert (piped["layout"], piped["ranks"]) == (layout, 3)
    ours, theirs = (checkpoint.load(tmp_path / name) for name in ("alone", "piped"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours | theirs)
    again = train("mlp_deep", "--pp", 2, "--weights", tmp_path / "piped", "--lr", 0, "--steps", 1, "--dtype", "float64")
    assert again["weights_sha256"] == alone["weights_sha256"]
    assert (again["layout"]["schedule"], again["layout"]["microbatches"]) == ("1f1b", 2)


@pytest.mark.grid
def test_with_data_parallelism_inside_a_users_own_mpirun():
    """Of 4 ranks and --pp 2, --dp is 2; the ledger has every boundary."""
    flags = ("--pp", 2, "--schedule", "gpipe", "--microbatches", 4, "--steps", 1, "--ledger", "--json")
    status, out, _ = call("train", "lenet5_small", *flags, command=mpirun(4))
    assert status == 0
    run = json.loads(out)
    assert (run["layout"]["dp"], run["layout"]["pp"]) == (2, 2)
    rows = {(row["rank"], row["layer"], row["direction"]): row["messages"] for row in run["ledger"] if row["layer"]}
    assert [rows[rank, "stage 0", "forward"] for rank in (0, 1)] == [5, 5]  # with one that tells the order of memory
    assert [rows[rank, "stage 1", "backward"] for rank in (2, 3)] == [5, 5]
    status, out, err = call("train", "mlp_deep", "--pp", 2, "--json", command=mpirun(3))
    assert (status, out.strip()) == (2, "")
    assert err.count("parallel-dl: --pp 2: needs 2 ranks, but mpirun started 3; use --pp 1 or 3") == 1


def test_pipedream_updates_once_per_microbatch():
    run = train("mlp_deep", "--pp", 2, "--schedule", "pipedream", "--microbatches", 4, "--epochs", 1)
    assert run["steps"] == len(run["losses"]) == 4 * 23


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("mlp_deep", "--pp", "0"), "--pp 0: must be at least 1"),
        (("mlp_deep", "--pp", "12"), "--pp 12: the network has 9 layers with weights; expected 1 to 9"),
        (("mlp", "--pp", "2", "--microbatches", "0"), "--microbatches 0: must be at least 1"),
        (("mlp", "--pp", "2", "--schedule", "1f2b"), "did you mean '1f1b'?"),
        (("mlp", "--stage", "fc2"), "--stage fc2: needs a pipeline"),
        (("mlp", "--chunks", "2"), "--chunks 2: needs a pipeline"),
        (("mlp", "--pp", "2", "--schedule", ""), "unknown --schedule ''"),
        (
            ("mlp", "--pp", "2", "--schedule", "pipedream", "--microbatches", "40"),
            "a batch has 29 samples; expected 1 to 29",
        ),
        (("mlp", "--schedule", "1f2b"), "did you mean '1f1b'?"),
        (("mlp", "--input-rate", "0"), "--input-rate 0.0: must be in 1e-6..1e12"),
        (("mlp", "--input-rate", "nan"), "--input-rate nan: must be in 1e-6..1e12"),
        (("mlp", "--pp", "2", "--stage", "fc9"), "--stage fc9: expected one of fc1"),
        (("mlp", "--pp", "2", "--chunks", "3"), "chunks"),
        (("mlp", "--pp", "2", "--schedule", "interleaved", "--microbatches", "3"), "multiples of --pp"),
        (("mlp", "--pp", "2", "--schedule", "pipedream", "--microbatches", "4", "--steps", "6"), "a multiple of 4"),
    ],
)
def test_bad_input(capsys, flags, words):
    assert main(["train", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("parallel-dl: ")
    assert err.count("\n") == 1
    assert words in err, err


def test_samples_that_come_in_at_a_rate(capsys):
    """No sample enters before it has come, and the run is the same; how fast it is belongs into a benchmark."""
    common = ("--pp", 2, "--microbatches", 4, "--steps", 8)
    run, free = train("mlp_deep", *common, "--input-rate", 2000), train("mlp_deep", *common)
    assert run["losses"] == free["losses"]
    assert "stream" not in free
    stream = run["stream"]
    assert set(stream) == {"rate", "throughput", "queue", "queue_growth", "seconds_waited"}
    assert run["seconds"] >= (8 * 64 - 16) / 2000
    assert main(["train", "mlp_deep", "--input-rate", "1e6", "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "input rate" in out
    assert "queue at the end" in out


@pytest.mark.grid
def test_split_layers_in_a_pipeline(tmp_path):
    """The same run as alone, to rounding; its file is read alone, and the reverse."""
    common = ("--steps", 2, "--dtype", "float64", "--microbatches", 2)
    alone = train("lenet5_small", *common, "--output", tmp_path / "alone")
    both = train("lenet5_small", *common, "--pp", 2, "--mp", 2, "--output", tmp_path / "both")
    np.testing.assert_allclose(both["losses"], alone["losses"], rtol=1e-10)
    assert (both["layout"]["pp"], both["layout"]["mp"], both["ranks"]) == (2, 2, 4)
    ours, theirs = (checkpoint.load(tmp_path / name) for name in ("alone", "both"))
    assert all(np.allclose(ours[name], theirs[name], rtol=1e-8) for name in ours | theirs)
    again = train(
        "lenet5_small", "--weights", tmp_path / "alone", "--lr", 0, "--steps", 1, "--pp", 2, "--mp", 2, *common[2:]
    )
    assert again["weights_sha256"] == alone["weights_sha256"]


@pytest.mark.grid
def test_rates_are_planned_over_all_updates_of_an_asynchronous_schedule():
    """One per microbatch: four epochs, or as many steps, are the same run."""
    common = (
        "mlp",
        "--pp",
        2,
        "--schedule",
        "pipedream",
        "--microbatches",
        4,
        "--lr-policy",
        "cosine",
        "--batch-size",
        500,
    )
    by_epochs = train(*common, "--epochs", 2)
    assert by_epochs["steps"] == 2 * 4 * 3
    assert train(*common, "--steps", 24)["weights_sha256"] == by_epochs["weights_sha256"]

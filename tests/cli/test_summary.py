"""`parallel-dl summary`: what it prints, without MPI and without a data set, and what it refuses."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from parallel_dl import networks
from parallel_dl.cli import main
from parallel_dl.cli.summary import _short
from parallel_dl.launch import find_mpirun

COMMAND = [sys.executable, "-m", "parallel_dl", "summary"]
OF_NETWORK = [
    *("network", "input_shape", "classes", "batch_size", "parameters", "multiply_adds"),
    *("work", "depth", "average_parallelism", "layers"),
]
OF_LAYER = [
    *("name", "kind", "output_shape", "parameters", "multiply_adds", "activations"),
    *("work", "depth", "average_parallelism", "activations_per_weight", "threshold_batch", "choice"),
]


def run(*arguments, before=(), **variables):
    """(exit status, stdout, stderr)."""
    process = subprocess.run(
        [*before, *COMMAND, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return process.returncode, process.stdout, process.stderr


def summary(capfd, *arguments):
    assert main(["summary", *map(str, arguments), "--json"]) == 0
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")
    return json.loads(out, parse_constant=pytest.fail)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_json(name, capfd):
    found = summary(capfd, name)
    shipped = networks.NETWORKS[name]
    assert list(found) == OF_NETWORK
    assert (found["network"], found["classes"]) == (name, shipped.classes or 10)
    assert found["input_shape"] == list(shipped.input_shape or (1, 8, 8))
    layers = found["layers"]
    assert all(list(layer) == OF_LAYER for layer in layers)
    network = networks.create(name, found["input_shape"], found["classes"])
    assert [layer["name"] for layer in layers] == list(network._modules)
    assert found["parameters"] == network.parameter_count()
    for total in ("parameters", "multiply_adds", "work"):
        assert found[total] == sum(layer[total] for layer in layers)
    # of branches only the longest chain counts
    branches = any(layer["kind"] == "Branches" for layer in layers)
    assert (found["depth"] < sum(layer["depth"] for layer in layers)) == branches
    assert layers[-1]["output_shape"] == [found["classes"]]
    for layer in layers:
        assert layer["activations"] == np.prod(layer["output_shape"])
        assert (layer["activations_per_weight"] is None) == (layer["parameters"] == 0)
        assert (layer["average_parallelism"] is None) == (layer["kind"] == "Flatten")
        assert (layer["threshold_batch"] is None) == (layer["kind"] not in ("Conv2d", "Linear"))
        assert (layer["choice"] is None) == (layer["threshold_batch"] is None)


def test_batch_size_is_of_work_and_depth(capfd):
    one, many = (summary(capfd, "alexnet", "--batch-size", size) for size in (1, 128))
    assert one["multiply_adds"] == many["multiply_adds"] == 724_406_816
    assert many["work"] == 128 * one["work"]
    assert many["depth"] == one["depth"]
    assert (one["batch_size"], many["batch_size"]) == (1, 128)
    assert many["layers"][0]["activations"] == 96 * 55 * 55


def test_batch_size_decides_between_data_and_model(capfd):
    for batch, chosen in ((4095, "model"), (4096, "data")):
        layers = {
            layer["name"]: layer for layer in summary(capfd, "alexnet_one_tower", "--batch-size", batch)["layers"]
        }
        assert (layers["fc7"]["threshold_batch"], layers["fc7"]["choice"]) == (4096.0, chosen)
        assert (layers["fc6"]["choice"], layers["fc8"]["choice"], layers["conv5"]["choice"]) == (
            "model",
            "data",
            "data",
        )
        assert (layers["relu7"]["threshold_batch"], layers["relu7"]["choice"]) == (None, None)


def test_shape_and_classes_from_a_data_set(capfd, tmp_path):
    x, y = np.zeros((4, 3, 9, 7)), np.array([0, 1, 2, 4])
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for arguments in (("--dataset", tmp_path / "d.npz"), ("--dataset", "npz", "--data-dir", tmp_path)):
        found = summary(capfd, "vgg_small", *arguments)
        assert (found["input_shape"], found["classes"]) == ([3, 9, 7], 5)


def test_a_full_network_accepts_data_of_its_shape(capfd, tmp_path):
    x, y = np.zeros((4, 1, 28, 28)), np.array([0, 1, 2, 4])
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert summary(capfd, "lenet5", "--dataset", tmp_path / "d.npz")["classes"] == 10


def test_the_table():
    start = time.perf_counter()
    status, out, err = run("alexnet", "--batch-size", 2000)
    assert time.perf_counter() - start < 5
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    for words in (
        "alexnet: input 3 x 224 x 224, 1,000 classes",
        "activations threshold at batch ",
        "multiply-adds W D W/D / weights batch 2,000 ",
        "conv2 Conv2d 256 x 27 x 27 307,456 223,948,800 448 G 12 37.3 G 0.607 2.39 data ",
        "flatten Flatten 9216",
        "fc6 Linear 4096 37,752,832 37,748,736 75.5 G 14 5.39 G 0.000108 5,671 model ",
        "fc8 Linear 1000 4,097,000 4,096,000 8.19 G 12 683 M 0.000244 1,608 data ",
        "total 60,965,224 724,406,816 1.45 T 123 11.8 G",
        "work W and depth D for 2,000 samples.",
        "Convolutions: 91.9% of the multiply-adds, 3.8% of the parameters.",
        "Threshold batch: 2|w| / (|x| + |y|), for weights w without biases, a sample's input x and output y. Below it,",
        "algorithms, bandwidth only (no latency), no overlap, reduce-scatter backward.",
    ):
        assert words in re.sub(r" +", " ", out)


def test_numbers_of_three_digits():
    """999,950 is no 1000 k, and what is beyond all prefixes is still a number."""
    numbers = (None, 0, 0.0, 7, 999, 82.25, 1000, 17_024, 999_499, 999_950, 1.849e9, 1_982_713_561_088, 10**34)
    shown = ("", "", "", "7", "999", "82.2", "1.00 k", "17.0 k", "999 k", "1.00 M", "1.85 G", "1.98 T", "10000 Q")
    assert tuple(map(_short, numbers)) == shown


def test_without_mpi(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('there is no MPI here')")
    status, out, err = run("lenet5_small", "--json", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (status, err) == (0, "")
    assert json.loads(out)["parameters"] == 21_386


def test_once_inside_an_mpirun():
    """Of a user: every rank counts, one speaks."""
    settings = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    before = [str(find_mpirun()), "-n", "3"]
    status, out, _ = run("lenet5", "--json", before=before, **settings)
    assert status == 0
    assert json.loads(out)["parameters"] == 61_706
    status, out, err = run("lenet6", before=before, **settings)
    assert (status, err.count("did you mean 'lenet5'?")) == (2, 1)


BAD = [
    (["lenet6"], "unknown network 'lenet6': did you mean 'lenet5'?"),
    ([], "Missing argument"),
    (["mlp", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
    (["mlp", "--batch-size", "some"], "--batch-size"),
    (["mlp", "--dataset", "digit"], "did you mean 'digits'?"),
    (["lenet5", "--data-dir", "/tmp"], "--data-dir /tmp: belongs to --dataset, which is not given"),
    (
        ["lenet5", "--dataset", "digits"],
        "--dataset digits: network lenet5: takes 1 x 28 x 28, not 1 x 8 x 8; try lenet5_s",
    ),
    (
        ["vgg16", "--dataset", "digits"],
        "--dataset digits: network vgg16: takes 3 x 224 x 224, not 1 x 8 x 8; try vgg_s",
    ),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_is_one_line_and_status_2(arguments, said, capfd):
    assert main(["summary", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("parallel-dl: ")
    assert err.count("\n") == 1
    assert said in err


def test_features_are_no_images(capfd, tmp_path):
    x, y = np.zeros((4, 64)), np.arange(4)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert main(["summary", "alexnet_small", "--dataset", str(tmp_path / "d.npz")]) == 2
    said = "network alexnet_small: takes images (channels, height, width), but a sample has 64 features; try mlp\n"
    assert capfd.readouterr().err.endswith(said)


@pytest.mark.parametrize("command", ["train", "summary"])
def test_help_lists_the_networks(command, capfd):
    assert main([command, "--help"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert f"Which network: {', '.join(networks.NETWORKS)}." in said


def test_the_page_lists_the_networks(capfd):
    """Name, input, parameters and rate as they are."""
    page = (ROOT / "docs" / "command-line.md").read_text()
    section = re.search(r"^## Networks\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "| `" in line]
    assert [row[0].strip("`") for row in rows] == list(networks.NETWORKS)
    for (name, shipped), row in zip(networks.NETWORKS.items(), rows):
        assert (float(row[4]), row[5]) == (shipped.lr, shipped.lr_policy)
        assert int(row[3].split()[0].replace(",", "")) == summary(capfd, name)["parameters"]
        if shipped.input_shape:
            assert (row[1], row[2]) == (" x ".join(map(str, shipped.input_shape)), str(shipped.classes))


def test_the_page_lists_the_keys():
    page = (ROOT / "docs" / "command-line.md").read_text()
    section = re.search(r"^### The JSON object of `summary --json`\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)[1]
    keys = {
        key
        for line in section.splitlines()
        if line.startswith("| `")
        for key in re.findall("`(.*?)`", line.split("|")[1])
    }
    assert keys == {*OF_NETWORK, *OF_LAYER}

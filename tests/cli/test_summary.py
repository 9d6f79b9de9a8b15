"""`parallel-dl summary`: what it prints, without MPI and without a data set, and what it refuses."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import HANG, ROOT

from parallel_dl import networks
from parallel_dl.cli import main
from parallel_dl.cli.splits import parse_splits
from parallel_dl.cli.summary_tables import _of_ranks, _short
from parallel_dl.launch import find_mpirun

COMMAND = [sys.executable, "-m", "parallel_dl"]
OF_NETWORK = [
    *("network", "input_shape", "classes", "batch_size", "mp", "parameters", "multiply_adds"),
    *("work", "depth", "average_parallelism", "layers"),
]
OF_LAYER = [
    *("name", "kind", "output_shape", "parameters", "multiply_adds", "activations"),
    *("work", "depth", "average_parallelism", "activations_per_weight", "threshold_batch", "choice"),
]
# with --mp
OF_PLAN = ["split", "ranks", "loss", "gradients"]
OF_DIVIDED_LAYER = ["split", "shares"]
OF_RANK = ["rank", "parameters", "parameters_share", "work", "work_share", "messages", "values"]
OF_SHARE = ["rank", "parameters", "work", "messages", "values", "values_forward", "values_backward"]


def run(*arguments, command="summary", before=(), **variables):
    """(exit status, stdout, stderr)."""
    process = subprocess.run(
        [*before, *COMMAND, command, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=HANG,
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
    assert (found["network"], found["classes"], found["mp"]) == (name, shipped.classes or 10, 1)
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
    status, out, err = run("alexnet", "--batch-size", 2000)
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


@pytest.mark.parametrize("ranks", [1, *(pytest.param(ranks, marks=pytest.mark.grid) for ranks in (2, 4, 8)), 3])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_json_of_ranks(name, ranks, capfd):
    """What is said without --mp is the same with it; each rank's numbers are those of its layers and the loss."""
    serial, found = summary(capfd, name, "--batch-size", 5), summary(capfd, name, "--mp", ranks, "--batch-size", 5)
    assert list(found) == [*OF_NETWORK[:-1], *OF_PLAN, "layers"]
    assert {**{key: found[key] for key in OF_NETWORK[:-1]}, "mp": 1} == {key: serial[key] for key in OF_NETWORK[:-1]}
    for layer, alone in zip(found["layers"], serial["layers"], strict=True):
        assert list(layer) == [*OF_LAYER, *OF_DIVIDED_LAYER]
        assert {key: layer[key] for key in OF_LAYER} == alone
        assert (layer["split"] is None) == (layer["name"] not in found["split"])
        assert [list(share) for share in layer["shares"]] == [OF_SHARE] * ranks
    assert [list(total) for total in found["ranks"]] == [OF_RANK] * ranks
    assert bool(found["split"]) == (ranks > 1)
    for rank, total in enumerate(found["ranks"]):
        own = [layer["shares"][rank] for layer in found["layers"]] + [found["loss"][rank], found["gradients"][rank]]
        assert {share["rank"] for share in own} == {total["rank"]} == {rank}
        for key in ("parameters", "work", "messages", "values"):
            assert total[key] == sum(share[key] for share in own)
        assert total["values"] == sum(share["values_forward"] + share["values_backward"] for share in own)
        assert total["parameters_share"] == total["parameters"] / found["parameters"]
        assert total["work_share"] == total["work"] / found["work"]
        assert (total["messages"] > 0) == (ranks > 1)


def test_what_alexnets_towers_send(capfd):
    found = summary(capfd, "alexnet", "--mp", 2)
    layers = {layer["name"]: layer for layer in found["layers"]}
    crossing = {"conv3": 21632, "fc6": 4608, "fc7": 2048, "fc8": 2048}
    for rank in (0, 1):
        sent = {name: layer["shares"][rank]["values_forward"] for name, layer in layers.items()}
        assert {name: values for name, values in sent.items() if values} == crossing
        assert {**found["loss"][rank], "rank": 0} == {
            **dict.fromkeys(OF_SHARE, 0),
            **{"messages": 2, "values": 3, "values_forward": 3},
        }
    assert [layers[name]["split"] for name in ("conv1", "conv2", "pool2", "fc8")] == [
        *("filters", "towers"),
        *(None, "output"),
    ]
    assert found["split"]["conv2"] == "towers"
    assert [total["work_share"] for total in found["ranks"]] == [0.5, 0.5]


def test_summary_states_what_training_sends(capfd):
    """Layer by layer and rank by rank, against the ledger of three ranks: image rows, a pair, and the loss."""
    options = ["--mp", 3, "--split", "features=rows", "--split", "fc2=output", "--batch-size", 30]
    found = summary(capfd, "lenet5_small", *options)
    status, out, err = run(
        "lenet5_small", *options, "--steps", 1, "--allreduce", "mpi", "--json", "--ledger", command="train"
    )
    assert (status, err) == (0, "")
    sent = {}
    for row in json.loads(out)["ledger"]:
        of = sent.setdefault((row["layer"], row["rank"]), {"messages": 0, "forward": 0, "backward": 0})
        of["messages"] += row["messages"]
        of[row["direction"]] += row["values"]
    layers = {layer["name"]: layer["shares"] for layer in found["layers"]} | {"loss": found["loss"]}
    for share in found["gradients"]:  # in one array, each weight on a multiple of 64 bytes
        summed = sent.pop(("gradients", share["rank"]))
        assert (summed["messages"], summed["forward"]) == (share["messages"], 0) == (1, 0)
        assert 0 <= summed["backward"] - share["values"] < 5 * 16
    assert sent == {
        (name, share["rank"]): {
            **{"messages": share["messages"], "forward": share["values_forward"], "backward": share["values_backward"]},
        }
        for name, shares in layers.items()
        for share in shares
        if share["messages"]
    }


def test_one_weird_trick_by_hand(capfd):
    """Convolutions along the samples, fully connected layers by their outputs: 128 samples on two ranks."""
    splits = ("--split", "features=samples", "--split", "classifier=output")
    whole = {layer["name"]: layer for layer in summary(capfd, "alexnet", "--batch-size", 128)["layers"]}
    found = summary(capfd, "alexnet", "--mp", 2, *splits, "--batch-size", 128)
    layers = {layer["name"]: layer for layer in found["layers"]}
    convolutions = {"conv1": 34_944, "conv2": 307_456, "conv3": 885_120, "conv4": 663_936, "conv5": 442_624}
    for rank in (0, 1):
        own = {name: layer["shares"][rank] for name, layer in layers.items()}
        for name, share in own.items():  # of everything half: of the samples, later of the features
            assert 2 * share["work"] == whole[name]["work"]
            assert share["parameters"] == convolutions.get(name, whole[name]["parameters"] // 2)
        # fc6 gets the other rank's 64 samples of 9216 values, fc7 and fc8 the other's 2048 features of 128 samples
        sent = {name: (s["messages"], s["values_forward"], s["values_backward"]) for name, s in own.items()}
        assert {name: of for name, of in sent.items() if of[0]} == {
            "fc6": (2, 64 * 9216, 64 * 9216),
            "fc7": (2, 128 * 2048, 128 * 2048),
            "fc8": (2, 128 * 2048, 128 * 2048),
        }
        assert own["conv1"]["work"] == 64 * 96 * 55 * 55 * 3 * 11 * 11
        assert own["fc8"]["work"] == 128 * 4096 * 500
        nothing = {"rank": rank, "parameters": 0, "work": 0}
        assert found["loss"][rank] == {
            **{**nothing, "messages": 2, "values": 3 * 128, "values_forward": 3 * 128, "values_backward": 0},
        }
        summed = sum(convolutions.values())
        assert summed == 2_334_080
        assert found["gradients"][rank] == {
            **{**nothing, "messages": 1, "values": summed, "values_forward": 0, "values_backward": summed},
        }
        total = found["ranks"][rank]
        assert total["parameters"] == summed + (60_965_224 - summed) // 2
        assert (total["messages"], total["work_share"]) == (9, 0.5)
        assert total["values"] == 2 * (589_824 + 262_144 + 262_144) + 384 + 2_334_080
    one = summary(capfd, "alexnet", "--mp", 2, *splits)  # a single sample is rank 0's, and is sent to rank 1
    conv1, fc6 = ({layer["name"]: layer for layer in one["layers"]}[name]["shares"] for name in ("conv1", "fc6"))
    assert [share["work"] for share in conv1] == [105_415_200, 0]
    assert [share["work"] for share in fc6] == [18_874_368, 18_874_368]
    assert [share["values_forward"] for share in fc6] == [0, 9216]
    assert [share["values"] for share in one["gradients"]] == [2_334_080] * 2


def test_own_splits(capfd):
    """As written or as its synonym; what is not named is done by all, of what it gets."""
    for flag in ("--mp", "--tp"):
        found = summary(capfd, "mlp", flag, 2, "--split", "fc2=row", "--split", " fc1 = output ", "--batch-size", 10)
        assert found["split"] == {"fc2": "input", "fc1": "output"}
        layers = {layer["name"]: layer for layer in found["layers"]}
        assert [layers[name]["split"] for name in ("fc1", "relu1", "fc2", "fc3")] == ["output", None, "input", None]
        assert [share["parameters"] for share in layers["fc2"]["shares"]] == [64 * 64 + 64] * 2
        assert [share["work"] for share in layers["fc3"]["shares"]] == [6400] * 2
        assert layers["fc2"]["shares"][1] == {
            **{"rank": 1, "parameters": 4160, "work": 10 * 64 * 64, "messages": 1},
            **{"values": 640, "values_forward": 640, "values_backward": 0},
        }
        assert found["loss"][0]["messages"] == 0
    found = summary(capfd, "lenet5", "--mp", 4, "--split", "features=2x2", "--split", "fc1=output:whole")
    assert found["split"] == {"features": "2x2", "fc1": "output:whole"}
    assert [layer["split"] for layer in found["layers"]][:4] == ["2x2", None, None, "2x2"]
    assert parse_splits(None) is parse_splits([]) is None


def test_the_table_of_ranks(capfd):
    assert main(["summary", "alexnet", "--mp", "2"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    said = re.sub(r" +", " ", out)
    for words in (
        "alexnet divided among 2 ranks",
        "layer split parameters W messages forward backward",
        "conv1 filters 17,472 52.7 M \n",
        "norm1 follows 145 k \n",
        "conv3 filters 442,560 74.8 M 2 21,632 21,632 \n",
        "fc8 output 2,048,500 2.05 M 2 2,048 2,048 \n",
        "loss follows 2 3 \n",
        "rank parameters of all W of all messages forward backward",
        "1 30,482,612 50.0% 363 M 50.0% 10 30,339 30,336 \n",
        "imbalance 1.00 1.00 1.00 1.00 1.00 \n",
        "Per rank, in a step with 1 sample: ",
    ):
        assert words in said
    assert said.index("total 60,965,224") < said.index("divided among")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--mp", 3, "--batch-size", 10),
            [
                "fc1 output 2,795 / 2,795 / 2,730 27.5 k / 27.5 k / 26.9 k \n",
                "fc2 input 2,816 / 2,816 / 2,752 27.5 k / 27.5 k / 26.9 k 1 640 \n",
                "relu2 every rank 640 \n",
                "2 5,677 33.0% 56.7 k 33.0% 4 670 640 \n",
                "imbalance 1.01 1.01 1.00 1.00 1.00 \n",
                "several are rank 0, rank 1 and so on.",
            ],
        ),
        (
            ("--mp", 6, "--split", "fc3=output"),
            [
                "fc2 every rank 8,256 8.19 k \n",
                "fc3 output 65 .. 130 64 .. 128 1 64 \n",
                "several are the least and the most of the ranks.",
            ],
        ),
        (("--mp", 1), ["mlp divided among 1 rank \n", "fc1 every rank 8,320 8.19 k \n", "imbalance 1.00 1.00 \n"]),
    ],
)
def test_tables_of_uneven_ranks(arguments, expected, capfd):
    assert main(["summary", "mlp", *map(str, arguments)]) == 0
    said = re.sub(r" +", " ", capfd.readouterr().out)
    for words in expected:
        assert words in said


def test_one_number_for_equal_ranks():
    for numbers, said in {(7, 7): "7", (0, 0): "", (7, 0): "7 / 0", (0, 1, 2, 3, 4): "0 .. 4", (5,) * 9: "5"}.items():
        assert _of_ranks(numbers, _short) == said


def test_numbers_of_three_digits():
    """999,950 is no 1000 k, and what is beyond all prefixes is still a number."""
    numbers = (None, 0, 0.0, 7, 999, 82.25, 1000, 17_024, 999_499, 999_950, 1.849e9, 1_982_713_561_088, 10**34)
    shown = ("", "", "", "7", "999", "82.2", "1.00 k", "17.0 k", "999 k", "1.00 M", "1.85 G", "1.98 T", "10000 Q")
    assert tuple(map(_short, numbers)) == shown


def test_without_mpi(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('there is no MPI here')")
    for arguments in ((), ("--mp", 8, "--split", "features=rows")):
        status, out, err = run("lenet5_small", *arguments, "--json", PYTHONPATH=f"{tmp_path}:{ROOT}")
        assert (status, err) == (0, "")
        assert json.loads(out)["parameters"] == 21_386


@pytest.mark.grid
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
    (["lenet5", "--data-dir", "/tmp"], "--data-dir /tmp: needs --dataset"),
    (
        ["lenet5", "--dataset", "digits"],
        "--dataset digits: network lenet5: takes 1 x 28 x 28, not 1 x 8 x 8; try lenet5_s",
    ),
    (
        ["vgg16", "--dataset", "digits"],
        "--dataset digits: network vgg16: takes 3 x 224 x 224, not 1 x 8 x 8; try vgg_s",
    ),
    (["mlp", "--mp", "0"], "parallel-dl: --mp 0: must be at least 1"),
    (["mlp", "--tp", "-1"], "parallel-dl: --mp -1: must be at least 1"),
    (["mlp", "--mp", "two"], "--mp"),
    (["mlp", "--split", "fc1=output"], "parallel-dl: --split fc1=output: needs --mp 2 or more"),
    (["mlp", "--split", "fc1=output", "--mp", "1"], "--split fc1=output: needs --mp 2 or more"),
    *(
        (["mlp", "--mp", "2", "--split", split], f"--split {split}: expected LAYER=HOW, like fc1=output")
        for split in ("fc1", "fc1=", "=output", "fc1=output=whole")
    ),
    (
        ["mlp", "--mp", "2", "--split", "fc1=output", "--split", "fc1=input"],
        "--split fc1=input: fc1 is given twice, as fc1=output before",
    ),
    (
        ["mlp", "--mp", "2", "--split", "relu1=output"],
        "--split relu1=output: a ReLU follows its input's placement; use",
    ),
    (
        ["mlp", "--mp", "2", "--split", "fc1=rows"],
        "--split fc1=rows: a Linear cannot be split that way; did you mean fc1",
    ),
    (
        ["mlp", "--mp", "2", "--split", "nosuch=rows"],
        "--split nosuch=rows: there is no layer nosuch; expected one of fc1, f",
    ),
    (
        ["lenet5", "--mp", "2", "--split", "conv1=2x2"],
        "--split conv1=2x2: 2 x 2 tiles do not fit 2 ranks; use rows, columns, rows-columns or a product",
    ),
    (
        ["mlp", "--mp", "2", "--split", "fc1=output:split", "--split", "fc2=output"],
        "--split fc1=output:split: leaves its output split, but fc2 needs it whole",
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
    assert f"{', '.join(networks.NETWORKS)}, or FILE.py:NAME." in said


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
    assert keys == {*OF_NETWORK, *OF_LAYER, *OF_PLAN, *OF_DIVIDED_LAYER, *OF_RANK, *OF_SHARE}


def test_the_page_shows_alexnet_on_two_ranks(capfd):
    """Each line of the example is printed."""
    page = (ROOT / "docs" / "command-line.md").read_text()
    section = re.search(r"^### Divided among ranks\n(.*?)^### ", page, re.DOTALL | re.MULTILINE)[1]
    command, *lines = re.search(r"^```text\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[1].splitlines()
    assert main(command.removeprefix("$ parallel-dl ").split()) == 0
    printed = {line.strip() for line in capfd.readouterr().out.splitlines()}
    assert len(lines) > 10
    assert {line.strip() for line in lines} <= {*printed, "", "..."}

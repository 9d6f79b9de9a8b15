"""`parallel-dl summary --pp`: its JSON object, its table, and what it refuses."""

import json
import re

import pytest
from conftest import ROOT

from parallel_dl import networks
from parallel_dl.cli import main
from parallel_dl.cost import cut_stages

OF_PIPELINE = ["pp", "schedule", "microbatches", "cache_bytes", "ranks", "serial"]
OF_RANK = [
    *("rank", "stages", "layers", "parameters", "weight_bytes", "multiply_adds"),
    *("idle", "peak_live", "activation_bytes", "weight_bytes_loaded"),
]
OF_SERIAL = ["weight_bytes", "weight_bytes_loaded"]
OF_MESSAGES = ["messages", "values", "values_forward", "values_backward"]
OF_GRID = [*OF_RANK, "pipe", "model", "work", *OF_MESSAGES, "to_stages"]


def summary(capfd, *arguments):
    assert main(["summary", *map(str, arguments), "--json"]) == 0
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")
    return json.loads(out, parse_constant=pytest.fail)


def test_json(capfd):
    plain = summary(capfd, "mlp_deep", "--batch-size", 64)
    flags = ("--pp", 4, "--microbatches", 8, "--cache-bytes", 133_000)
    found = summary(capfd, "mlp_deep", "--batch-size", 64, *flags)
    pipeline = found.pop("pipeline")
    assert found == plain
    assert list(pipeline) == OF_PIPELINE
    assert list(pipeline["serial"]) == OF_SERIAL
    assert all(list(own) == OF_RANK for own in pipeline["ranks"])
    assert [pipeline[key] for key in OF_PIPELINE[:4]] == [4, "1f1b", 8, 133_000]
    ranks = pipeline["ranks"]
    assert [own["rank"] for own in ranks] == [0, 1, 2, 3]
    assert [own["stages"] for own in ranks] == [[0], [1], [2], [3]]
    network = networks.create("mlp_deep", (1, 8, 8), 10)
    cut = cut_stages(network, (1, 8, 8), 4)
    assert [own["layers"] for own in ranks] == [[list(cut.layers(stage))] for stage in range(4)]
    assert [own["parameters"] for own in ranks] == [24_832, 33_024, 33_024, 34_314]
    assert [own["weight_bytes"] for own in ranks] == [99_328, 132_096, 132_096, 137_256]
    assert [own["multiply_adds"] for own in ranks] == [64 * each for each in (24_576, 32_768, 32_768, 34_048)]
    assert [round(own["idle"], 3) for own in ranks] == [0.458, 0.277, 0.277, 0.249]
    assert [own["peak_live"] for own in ranks] == [4, 3, 2, 1]
    # 8 samples in a microbatch: flatten, and two layers with their ReLU; the last has 10 values instead of one ReLU
    values = [64 + 4 * 128, 4 * 128, 4 * 128, 4 * 128 + 10]
    assert [own["activation_bytes"] for own in ranks] == [4 * 8 * n * live for n, live in zip(values, (4, 3, 2, 1))]
    assert [own["weight_bytes_loaded"] for own in ranks] == [99_328, 132_096, 132_096, 8 * 137_256]
    assert pipeline["serial"] == {"weight_bytes": 500_776, "weight_bytes_loaded": 8 * 500_776}


def test_defaults_are_those_of_train(capfd):
    pipeline = summary(capfd, "lenet5", "--pp", 3)["pipeline"]
    assert [pipeline[key] for key in OF_PIPELINE[:4]] == [3, "1f1b", 3, None]
    assert [own["weight_bytes_loaded"] for own in pipeline["ranks"]] == [None] * 3
    assert pipeline["serial"]["weight_bytes_loaded"] is None
    alone = summary(capfd, "lenet5", "--pp", 1, "--cache-bytes", 0)["pipeline"]
    assert (len(alone["ranks"]), alone["ranks"][0]["weight_bytes_loaded"]) == (1, alone["serial"]["weight_bytes"])
    one = summary(capfd, "lenet5", "--pp", 1, "--schedule", "gpipe", "--microbatches", 3)["pipeline"]
    assert (one["schedule"], one["ranks"][0]["peak_live"]) == ("gpipe", 3)
    assert "pipeline" not in summary(capfd, "lenet5")
    assert summary(capfd, "lenet5", "--mp", 1, "--pp", 2)["pipeline"]["pp"] == 2


def test_flags_reach_the_cut_and_the_schedule(capfd):
    by_hand = summary(capfd, "mlp_deep", "--pp", 2, "--stage", "fc9", "--schedule", "gpipe", "--microbatches", 5)
    ranks = by_hand["pipeline"]["ranks"]
    assert ranks[1]["layers"] == [["fc9"]]
    assert [own["peak_live"] for own in ranks] == [5, 5]
    found = summary(capfd, "mlp_deep", "--pp", 2, "--schedule", "interleaved", "--chunks", 4)["pipeline"]
    assert [own["stages"] for own in found["ranks"]] == [[0, 2, 4, 6], [1, 3, 5, 7]]


# -- with --mp -----------------------------------------------------------------------------------------------------
ONE_WEIRD_TRICK = ("--split", "features=samples", "--split", "classifier=output")


def test_json_with_split_layers(capfd):
    """Keys of --pp alone and of --mp alone are as they are there; beside them stands each rank of each stage."""
    flags = ("lenet5_small", "--batch-size", 30)
    of_pipeline = summary(capfd, *flags, "--pp", 2, "--microbatches", 4)
    of_splits = summary(capfd, *flags, "--mp", 3, *ONE_WEIRD_TRICK)
    found = summary(capfd, *flags, "--pp", 2, "--mp", 3, "--microbatches", 4, *ONE_WEIRD_TRICK)
    assert list(found) == [*of_splits, "pipeline"]
    grid = found["pipeline"].pop("grid")
    assert found["pipeline"] == of_pipeline["pipeline"]
    assert [list(own) for own in grid] == [OF_GRID] * 6
    assert [list(own["to_stages"]) for own in grid] == [OF_MESSAGES] * 6
    assert [(own["rank"], own["pipe"], own["model"]) for own in grid] == [
        (3 * p + m, p, m) for p in (0, 1) for m in range(3)
    ]
    for key in ("split", "parameters", "work", "mp"):
        assert found[key] == of_splits[key]
    for model, total in enumerate(found["ranks"]):
        own = [one for one in grid if one["model"] == model]
        for key in ("parameters", "work", "messages", "values"):
            assert total[key] == sum(one[key] for one in own)
        assert total["parameters"] == of_splits["ranks"][model]["parameters"]
    for key in ("work", "values"):
        assert sum(one[key] for one in found["ranks"]) == sum(one[key] for one in of_splits["ranks"])
    alone = summary(capfd, *flags, "--pp", 2, "--mp", 1, "--microbatches", 4)["pipeline"]
    assert [{key: own[key] for key in OF_RANK} for own in alone.pop("grid")] == alone["ranks"]


@pytest.mark.parametrize("splits", [ONE_WEIRD_TRICK, ("--split", "features=rows", "--split", "classifier=output")])
def test_summary_states_what_a_pipeline_with_split_layers_sends(splits, capfd):
    """Rank by rank, along both axes, against the ledger of four ranks.

    The order of memory is told once, by a message of 2 values.
    """
    flags = ["lenet5_small", "--pp", "2", "--mp", "2", "--microbatches", "4", "--batch-size", "30", *splits]
    grid = summary(capfd, *flags)["pipeline"]["grid"]
    assert main(["train", *flags, "--steps", "1", "--allreduce", "mpi", "--ledger", "--json"]) == 0
    sent = {}
    for row in json.loads(capfd.readouterr().out)["ledger"]:
        if row["layer"] not in ("report", "gradients"):
            of = sent.setdefault((row["rank"], row["axis"], row["direction"]), [0, 0])
            of[0] += row["messages"]
            of[1] += row["values"]
    for own in grid:
        count = lambda axis, part: [sent.get((own["rank"], axis, way), [0, 0])[part] for way in ("forward", "backward")]  # noqa: B023, E731
        gradients = (1, own["parameters"]) if own["pipe"] == 0 else (0, 0)
        assert own["messages"] == sum(count("model", 0)) + gradients[0]
        assert own["values_forward"] == count("model", 1)[0]
        assert own["values_backward"] == count("model", 1)[1] + gradients[1]
        between = own["to_stages"]
        assert between["messages"] == sum(count("pipe", 0)) - 1
        assert between["values"] == sum(count("pipe", 1)) - 2
        assert (between["values_forward"] == 0) == (own["pipe"] == 1)


def test_table_with_split_layers(capfd):
    flags = ["lenet5_small", "--pp", "2", "--mp", "2", "--microbatches", "4", "--batch-size", "30"]
    assert main(["summary", *flags, *ONE_WEIRD_TRICK, "--cache-bytes", "12000"]) == 0
    out, _ = capfd.readouterr()
    assert "lenet5_small in a pipeline: 2 x 2 ranks, 1f1b, 4 microbatches" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "1 conv1 .. flatten 2,572 10,288 672,000 0.7% 2 48,128 10,288" in lines
    assert "2 fc1 .. fc3 9,407 37,628 279,000 63.9% 1 6,688 150,512" in lines
    assert "all 95,832 321,600" in lines
    assert "serial 85,544 342,176" in lines
    assert "0 0 788 k 1 0 2,572 4 1,024 0" in lines
    assert "3 1 282 k 32 4,174 4,084 4 0 896" in lines


def test_table(capfd):
    flags = ["mlp_deep", "--pp", "4", "--microbatches", "8", "--batch-size", "64"]
    assert main(["summary", *flags, "--cache-bytes", "133000"]) == 0
    out, _ = capfd.readouterr()
    assert "mlp_deep in a pipeline: 4 ranks, 1f1b, 8 microbatches" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "0 flatten .. relu2 24,832 99,328 1,572,864 45.8% 4 73,728 99,328" in lines
    assert "3 fc7 .. fc9 34,314 137,256 2,179,072 24.9% 1 16,704 1,098,048" in lines
    assert "all 500,776 1,461,568" in lines
    assert "serial 500,776 4,006,208" in lines
    assert "fit into 133,000 bytes" in out
    assert main(["summary", *flags]) == 0
    out, _ = capfd.readouterr()
    assert "1,572,864   45.8%           4       73,728  \n" in out
    assert "loaded" not in out.lower()
    assert "serial" not in out.lower()


BAD = [
    (("--pp", 0), "--pp 0: must be at least 1"),
    (("--pp", "two"), "--pp"),
    (("--pp", 12), "--pp 12: the network has 9 layers with weights; expected 1 to 9"),
    (("--pp", 2, "--microbatches", 0), "--microbatches 0: must be at least 1"),
    (("--pp", 2, "--cache-bytes", -1), "--cache-bytes -1: must be at least 0"),
    (("--pp", 2, "--cache-bytes", "1M"), "--cache-bytes"),
    (("--pp", 2, "--schedule", "1f2b"), "unknown --schedule '1f2b': did you mean '1f1b'?"),
    (("--pp", 2, "--chunks", 3), "--chunks 3: applies only to interleaved"),
    (
        ("--pp", 2, "--schedule", "interleaved", "--microbatches", 3),
        "--microbatches 3: interleaved takes multiples of --pp, here 2, 4, 6 and so on",
    ),
    (("--pp", 2, "--stage", "fc99"), "--stage fc99: expected one of fc1, relu1, fc2"),
    (("--pp", 3, "--stage", "fc2"), "--stage fc2: for 3 stages name 2 layers"),
    (("--pp", 2, "--stage", "fc1"), "--stage fc1: the stage before it has no weights"),
    (
        ("--pp", 9999, "--microbatches", 9999),
        "--pp 9999: at most 100,000 forward passes are allowed in all, stages times microbatches",
    ),
    (("--schedule", "gpipe"), "--schedule gpipe: needs --pp N"),
    (("--stage", "fc2"), "--stage fc2: needs --pp N"),
    (("--pp", 1, "--stage", "fc2"), "--stage fc2: for 1 stage name 0 layers"),
    (("--chunks", 2), "--chunks 2: needs --pp N"),
    (("--microbatches", 2), "--microbatches 2: needs --pp N"),
    (("--cache-bytes", 2), "--cache-bytes 2: needs --pp N"),
    (("--pp", 2, "--mp", 2, "--split", "fc10=output"), "--split fc10=output: there is no layer fc10; did you mean fc1"),
    (("--pp", 12, "--mp", 2), "--pp 12: the network has 9 layers with weights; expected 1 to 9"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_line_and_status_2(arguments, said, capfd):
    assert main(["summary", "mlp_deep", *map(str, arguments)]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("parallel-dl: ")
    assert said in err


def section(title):
    page = (ROOT / "docs" / "command-line.md").read_text()
    return re.search(rf"^### {title}\n(.*?)^###? ", page, re.DOTALL | re.MULTILINE)[1]


def test_the_page_lists_the_keys():
    page = section("In a pipeline")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    keys = {key for row in rows for key in re.findall("`(.*?)`", row)}
    assert keys == {"pipeline", *OF_PIPELINE, *OF_RANK, *OF_SERIAL, "grid", *OF_GRID}


def test_the_page_shows_what_is_printed(capfd):
    blocks = re.findall(r"^```text\n(.*?)^```$", section("In a pipeline"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        command, *lines = block.splitlines()
        assert main(command.removeprefix("$ parallel-dl ").split()) == 0
        printed = {line.strip() for line in capfd.readouterr().out.splitlines()}
        assert len(lines) > 8
        assert {line.strip() for line in lines} <= {*printed, "", "..."}

"""`parallel-dl plan`: each rank's program and each layer's placements, for every kind of layout, without MPI."""

import json
import subprocess
import sys

import pytest
from conftest import HANG

from parallel_dl import launch
from parallel_dl.cli import main
from parallel_dl.layout import Layout
from parallel_dl.schedule import check, parse


def plan(capfd, *arguments):
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")
    return json.loads(out, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("flags", "layout", "programs"),
    [
        ("mlp", Layout(), ["0F0 0B0 U"]),
        ("mlp --microbatches 2", Layout(microbatches=2), ["0F0 0B0 0F1 0B1 U"]),
        ("mlp --dp 2", Layout(dp=2), ["0F0 0B0 AR U"] * 2),
        ("mlp --mp 2", Layout(mp=2), ["0F0 0B0 U"] * 2),
        (
            "mlp_deep --pp 2 --dp 2 --mp 2 --microbatches 1",
            Layout(dp=2, mp=2, pp=2),
            ["0F0 0SF0 0RB0 0B0 AR U"] * 4 + ["1RF0 1F0 1B0 1SB0 AR U"] * 4,
        ),
        (
            "lenet5_small --hybrid owt --ranks 2 --scheme b --variable-batch",
            Layout(dp=2, hybrid="owt", scheme="b", variable_batch=True),
            [
                "0F0 0SF0:0 1RF0:0 0SF0:1 1F0:0 1B0:0 1SB0:0 1U0:0 "
                "1RF0:1 1F0:1 0RB0:0 1B0:1 1SB0:1 1U0:1 0RB0:1 0B0 0AR 0U"
            ]
            * 2,
        ),
    ],
)
def test_programs(capfd, flags, layout, programs):
    found = plan(capfd, *flags.split())
    assert list(found) == ["network", "input_shape", "batch_size", "layout", "ranks", "programs", "peak_live", "layers"]
    assert found["layout"] == layout.as_dict()
    assert (found["ranks"], found["programs"]) == (layout.ranks, programs)
    assert len(found["peak_live"]) == layout.ranks
    if layout.mp == 1:
        assert check(parse("\n".join(programs))).faults == ()


def test_placements(capfd):
    layers = plan(capfd, "mlp_deep", "--pp", 2, "--dp", 2, "--mp", 2)["layers"]
    found = {layer.pop("name"): list(layer.values()) for layer in layers}
    assert found["flatten"] == [0, None, "samples", "", "samples"]
    assert found["fc1"] == [0, "output", "samples, whole -> replicated", "axis 0 64+64", "samples, features 64+64"]
    weights = "weight axis 1 64+64; bias all"
    assert found["fc8"] == [1, "input", "samples, features 64+64", weights, "samples, partial -> whole"]
    layers = plan(capfd, "lenet5_small", "--mp", 2, "--split", "features=rows")["layers"]
    found = {layer.pop("name"): list(layer.values()) for layer in layers}
    assert found["conv1"] == [0, "rows", "all -> rows 6+6", "replicated", "rows 4+4"]
    layers = plan(capfd, "lenet5_small", "--hybrid", "owt", "--ranks", 2)["layers"]
    found = {layer.pop("name"): list(layer.values()) for layer in layers}
    assert found["conv2"] == [0, None, "samples", "all", "samples"]
    assert found["fc1"] == [1, "output", "replicated", "axis 0 60+60", "features 60+60"]


def test_sizes_and_peaks_are_those_of_each_rank(capfd):
    """Ten classes on three ranks, of which the first has the most; stage 0 keeps two microbatches, stage 1 one."""
    found = plan(capfd, "mlp_deep", "--pp", 2, "--mp", 3)
    assert found["peak_live"] == [2, 2, 2, 1, 1, 1]
    (last,) = [layer for layer in plan(capfd, "mlp", "--mp", 3)["layers"] if layer["name"] == "fc3"]
    assert (last["weights"], last["output"]) == ("axis 0 4+3+3", "features 4+3+3")


def test_text(capfd):
    assert main(["plan", "mlp_deep", "--pp", "2", "--dp", "3"]) == 0
    out, _ = capfd.readouterr()
    assert "mlp_deep: 6 ranks (--dp 3 --pp 2), 1f1b, 64 samples" in out
    assert "ranks 0 to 2  0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1 AR U\n" in out
    assert "AR all-reduce gradients" in out
    assert "Peak live activations of a rank: 1 to 2." in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("mlpp", "unknown network 'mlpp'"),
        ("mlp --batch-size 0", "--batch-size 0"),
        ("mlp --microbatches 65", "--microbatches 65: a batch has 64 samples"),
        ("mlp_deep --pp 2 --schedule interleaved --microbatches 3", "--microbatches 3: interleaved takes multiples"),
        ("mlp --mp 2 --split fc9=output", "--split"),
        ("mlp --hybrid owt --ranks 2", "--hybrid owt"),
    ],
)
def test_what_is_refused(capfd, flags, said):
    assert main(["plan", *flags.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_it_needs_no_mpi(environment):
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from parallel_dl.cli import main; sys.exit(main(['plan', 'mlp', '--dp', '2', '--mp', '2', '--json']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False)
    assert run.returncode == 0, run.stderr


OWN = """from parallel_dl import nn
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter((64, 10), nn.initializers.uniform(0.1))
    def forward(self, x): return x @ self.w
    def output_shape(self, s): return (10,)
net = lambda shape, classes: nn.Sequential(flatten=nn.Flatten(), own=Own())
"""
REFUSED = {
    "alexnet_small --mp 2 --reproducible --split conv1=rows": "--split conv1=rows: --reproducible divides only",
    "own.py:net --dp 2 --reproducible": "layer own: --reproducible cannot add up a Own's sums in the same order",
    "mlp --dp 3 --reproducible": "--dp 3: ",
    "mlp --pp 2 --schedule pipedream --reproducible": "--schedule pipedream: --reproducible needs one update per batch",
    "alexnet_small --hybrid owt --ranks 2 --reproducible": "--hybrid owt: cannot be combined with --reproducible",
}


@pytest.mark.parametrize("command", ["plan", "train", "verify"])
@pytest.mark.parametrize(("flags", "line"), REFUSED.items(), ids=REFUSED)
def test_no_plan_of_what_is_not_trained(capfd, tmp_path, monkeypatch, command, flags, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("ranks were started"))
    (tmp_path / "own.py").write_text(OWN)
    dataset = ["--dataset", "digits"] if "own" in flags and command == "verify" else []
    assert main([command, *flags.split(), *dataset]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"parallel-dl: {line}")

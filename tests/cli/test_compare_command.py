"""`parallel-dl compare` on docs/examples/hello.py, and on hello.py with one mistake in it."""

import json

import pytest
from conftest import ROOT
from test_commands import call

from parallel_dl.cli import main
from parallel_dl.equivalence.scripts import run_script

HELLO = (ROOT / "docs" / "examples" / "hello.py").read_text()
OBJECT = "gradients = GradientAllReduce(model.parameters(), comm)\n"
REDUCE = "        gradients.all_reduce()\n"
STEP = "        optimizer.step()\n"
MODEL, ZERO, TOTAL = "model = nn", "        optimizer.zero_grad()\n", ", total=batch.size"
SHARES = ", rank=comm.rank, ranks=comm.size"
FROZEN = "if comm.rank == 1:\n    model[1].weight.requires_grad = False\n"


def by_hand(how="comm.all_reduce(parameter.grad)"):
    return f"        for parameter in model.parameters():\n            parameter.grad = {how}\n"


SUMMED = ((OBJECT, ""), (REDUCE, by_hand()))
NOT_SUMMED = "each rank updates with its own gradient, whose sum is the serial one: "
# mistake -> (what is written otherwise, words of the verdict, on 2 ranks unless RANKS has others)
MISTAKES = {
    "no all-reduce": ([(REDUCE, "")], NOT_SUMMED + "no all-reduce before the update"),
    "mean over the share": ([(TOTAL, "")], "(32 and 32 samples): divide by 2, or pass total="),
    "all samples on each rank": (
        [(SHARES, "")],
        "every rank computes all samples of the batch: the loader lacks rank=",
    ),
    "after the update": (
        [(OBJECT, ""), (REDUCE + STEP, STEP + by_hand())],
        NOT_SUMMED + "they are summed after the update, not before",
    ),
    "averaged": (
        [(OBJECT, ""), (TOTAL, ""), (REDUCE, by_hand("comm.all_reduce(parameter.grad) / comm.size"))],
        "are averaged, but the shares are unequal (22, 21 and 21 samples): each has to count by its samples",
    ),
    "updates on rank 0": (
        [*SUMMED, (STEP, f"        if comm.rank == 0:\n    {STEP}")],
        "rank 1 makes only 0 updates where others make 3: is step() called on some ranks only?",
    ),
    "own seed": (
        [*SUMMED, (MODEL, f"nn.manual_seed(comm.rank)\n{MODEL}")],
        "rank 1 starts with other weights than rank",
    ),
    "no zero_grad": ([*SUMMED, (ZERO, "")], "from update 1 on: the gradient of 1.weight"),
    "frozen on rank 1": (
        [
            (OBJECT, ""),
            (REDUCE, by_hand("comm.all_reduce(parameter.data * 0 if parameter.grad is None else parameter.grad)")),
            ("optimizer = optim", f"{FROZEN}optimizer = optim"),
        ],
        "rank 1 has no gradient of 1.weight: is it frozen there, or not used?",
    ),
    "rate times ranks": (
        [*SUMMED, ("lr=0.1", "lr=0.1 * comm.size")],
        "1.weight after the update by ",
    ),
    "batch of each rank": (
        [("size=64", "size=64 * comm.size")],
        "2 ranks: another global batch: 128 samples in an update on 2 ranks, 64 on 1 rank",
    ),
    "refused by the library": (
        [(MODEL, f"nn.manual_seed(comm.rank)\n{MODEL}")],
        "2 ranks: failed: the run on 2 ranks e",
    ),
}
RANKS = {"averaged": 3}
STATUS = {"batch of each rank": 2}
IN_SUITE = list(MISTAKES)[:3]


def written(tmp_path, edits=(), name="train.py"):
    text = HELLO
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """(the right script, its runs on one rank: each of the wrong ones is held against the same two)."""
    return written(tmp_path_factory.mktemp("right")), {}


@pytest.fixture
def compare(right, tmp_path, monkeypatch, capfd):
    """compare(edits, flags) -> (status, what it prints) for hello.py with these changes, held against hello.py."""
    script, kept = right

    def run_once(path, arguments, ranks, folder, steps, timeout, nudge=False):
        key = path, ranks, nudge
        if path != script or key not in kept:
            kept[key] = run_script(path, arguments, ranks, folder, steps, timeout, nudge)
        return kept[key]

    def call(edits, *flags):
        wrong = written(tmp_path, edits)
        status = main(["compare", wrong, "--serial", script, "--steps", "3", *map(str, flags)])
        return status, capfd.readouterr()

    monkeypatch.setattr("parallel_dl.equivalence.scripts.run_script", run_once)
    monkeypatch.chdir(tmp_path)
    return call


def test_a_right_script(tmp_path, monkeypatch):
    """As users run it, with an argument, and with a file that it writes where it is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").write_text("kept")
    script = written(tmp_path, [("comm = world()", "import sys\nopen(sys.argv[1], 'w').close()\ncomm = world()")])
    status, out, err = call("compare", script, "-n", "1,2", "--steps", 3, "--json", "--", "log")
    assert (status, err) == (0, "")
    told = json.loads(out)
    (run,) = told.pop("runs")
    assert told == {"script": script, "serial": None, "reference_ranks": 1}
    assert 0 < run.pop("error") < 1e-5
    assert run == {
        **{"ranks": 2, "verdict": "equal", "updates": 3, "update": None, "what": "", "name": ""},
        **{"bound": None, "cause": "", "losses": []},
    }
    assert (tmp_path / "log").read_text() == "kept"


@pytest.mark.parametrize("mistake", IN_SUITE)
def test_a_wrong_script(compare, mistake):
    edits, words = MISTAKES[mistake]
    status, (out, err) = compare(edits, "-n", "2")
    assert (status, err) == (1, "")
    assert out.startswith("2 ranks: DIFFERENT from update 0 on: the gradient of 1.weight by ")
    assert words in out
    assert "losses there: serial 2.30385; by rank " in out


@pytest.mark.grid
@pytest.mark.parametrize("mistake", sorted(set(MISTAKES) - set(IN_SUITE)))
def test_other_wrong_scripts(compare, mistake):
    edits, words = MISTAKES[mistake]
    status, (out, _) = compare(edits, "-n", RANKS.get(mistake, 2))
    assert status == STATUS.get(mistake, 1)
    assert words in out


@pytest.mark.grid
def test_where_averages_are_right(compare):
    """On two ranks each has half of every batch but the last."""
    edits, _ = MISTAKES["averaged"]
    assert compare(edits, "-n", 2)[0] == 0


@pytest.mark.grid
def test_a_script_without_a_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = written(tmp_path, [(MODEL, f"import os\nnn.manual_seed(os.getpid())\n{MODEL}")])
    status, out, _ = call("compare", script, "--steps", 2)
    said = "2 ranks: not deterministic: two runs on 1 rank differ from update 0 on (1.weight): set a seed\n"
    assert (status, out) == (2, said)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("-n", "1"), "-n 1: expected different numbers, at least 2, as in 1,2,4"),
        (("-n", "2,2"), "-n 2,2: expected different numbers, at least 2, as in 1,2,4"),
        (("-n", "1,x"), "-n 1,x: expected numbers of ranks between 1 and 1024, as in 1,2,4"),
        (("--steps", "0"), "--steps 0: must be at least 1"),
        (("--timeout", "0"), "--timeout 0: must be a number of seconds above 0, at most 1e+07"),
        (("--serial", "none.py"), "--serial none.py: no such file; expected a Python file"),
    ],
)
def test_what_is_refused(tmp_path, capfd, flags, line):
    assert main(["compare", written(tmp_path), *flags]) == 2
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"parallel-dl: {line}\n")

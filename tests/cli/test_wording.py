"""What a line says is said once, names the flag, and speaks of one thing in the singular; help can be read whole."""

import ast
import os
import re

import pytest
from conftest import ROOT

from parallel_dl import launch
from parallel_dl.cli import main
from parallel_dl.cli.main import app
from parallel_dl.launch.limits import require_room


@pytest.fixture
def said(capfd):
    """said(*arguments) -> the line with which a command is refused."""

    def call(*arguments):
        assert main(list(map(str, arguments))) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n"), err[:13]) == ("", 1, "parallel-dl: ")
        return err[13:-1]

    return call


STAGES = [
    (("--pp", 2, "--stage", "fc7"), "--stage fc7: expected one of fc1, relu1, fc2, relu2, fc3"),
    (("--pp", 20), "--pp 20: the network has 3 layers with weights; expected 1 to 3"),
    (("--pp", 3, "--stage", "fc2"), "--stage fc2: for 3 stages name 2 layers"),
    (("--pp", 3, "--stage", "fc2", "--stage", "fc9"), "--stage fc9: expected one of relu2, fc3"),
    (("--pp", 3, "--stage", "fc3", "--stage", "fc2"), "--stage fc2: none is valid"),
    (("--pp", 2, "--stage", "fc1"), "--stage fc1: the stage before it has no weights; put it with a neighbour"),
    (
        ("--pp", 2, "--schedule", "interleaved", "--chunks", 9),
        "--pp 2 --chunks 9: 18 stages: the network has 3 layers with weights; expected 1 to 3",
    ),
    (("--pp", 10**6), "--pp 1000000: at most 100,000 forward passes are allowed in all, stages times microbatches"),
    (
        ("--pp", 2, "--schedule", "gpip"),
        "unknown --schedule 'gpip': did you mean 'gpipe'? "
        "expected one of naive, gpipe, 1f1b, interleaved, zb-h1, pipedream",
    ),
    (
        ("--pp", 2, "--schedule", "interleaved", "--microbatches", 3),
        "--microbatches 3: interleaved takes multiples of --pp, here 2, 4, 6 and so on",
    ),
]  # fmt: skip


@pytest.mark.parametrize("command", ["train", "summary"])
@pytest.mark.parametrize(("flags", "line"), STAGES, ids=lambda value: str(value)[:30])
def test_stages_are_refused_in_the_same_words(said, command, flags, line):
    assert said(command, "mlp", *flags) == line


def test_a_layout_file_is_spoken_of(said, tmp_path):
    path = tmp_path / "layout.toml"
    for text, line in (
        ("pp = 20", "pp 20: the network has 3 layers with weights; expected 1 to 3"),
        (
            'pp = 2\nstages = ["fc7"]',
            "stages fc7: expected one of fc1, relu1, fc2, relu2, fc3",
        ),
        ("dp = true", "dp true: must be a whole number"),
        ("schedule = false", "schedule false: must be a string"),
        ("stages = [true]", "stages, a list with true: must be a string"),
        ("reproducible = [true, 1]", "reproducible [true, 1]: must be true or false"),
        ("pp = 1979-05-27", "pp 1979-05-27: must be a whole number"),
        ('hybrid = "towt"', "unknown hybrid 'towt': did you mean 'owt'? expected owt"),
    ):
        path.write_text(text)
        assert said("train", "mlp", "--layout", path) == f"{path}: {line}"


RANKS = [
    (("train", "mlp", "--dp", 10**6), "--dp 1000000: at most 1024 are allowed on one machine; for more, use mpirun"),
    (("train", "mlp", "--dp", 600, "--mp", 2), "--dp 600 --mp 2: 1200 ranks: at most 1024 are allowed on one machine"),
    (("train", "alexnet_small", "--hybrid", "owt", "--ranks", 1000), "--ranks 1000: on "),
    (("verify", "mlp", "--dp", 2000), "--dp 2000: needs 2,000 ranks; at most 1024 are allowed"),
    (("verify", "mlp", "--ranks", 1000), "--ranks 1000: on "),
    (("run", "-n", 1000, __file__), "-n 1000: on "),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), RANKS, ids=lambda value: str(value)[:40])
def test_too_many_ranks_name_the_flag(said, monkeypatch, arguments, line):
    monkeypatch.setattr("parallel_dl.launch.limits.cores", lambda: 2)
    monkeypatch.setattr(launch, "run", lambda ranks, *_, **__: require_room(ranks))
    assert said(*arguments).startswith(line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("train", "mlp", "--output", ""), "--output '': is empty; give the name of a file"),
        (("train", "mlp", "--weights", ""), "--weights '': no such file; expected a safetensors file"),
        (("train", "mlp", "--layout", ""), "layout file '': no such file; expected a layout in TOML"),
        (("train", "mlp", "--data-dir", ""), "--data-dir '': is empty; give the name of a folder"),
        (("train", "mlp", "--dataset", "npz", "--data-dir", ""), "--data-dir '': is empty; give the name of a folder"),
        (("diff", "", "b"), "'': is empty; give a safetensors file, or a folder of them"),
        (("run", ""), "program '': no such file; expected a Python file"),
        (("schedule", "--check", ""), "'': no such file; expected a plan in text or CSV"),
    ],
)
def test_an_empty_name_can_be_seen(said, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert said(*arguments) == line


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run", lambda *_, **__: 0)
    (tmp_path / "exc.py").write_text("")
    return "exc.py"


@pytest.mark.parametrize("flag", [("-n", "3"), ("-n3",), ("--ranks", "3"), ("--ranks=3",), ("--full-traceback",)])
def test_a_flag_after_the_program_is_told_where_it_goes(program, capfd, flag):
    assert main(["run", program, "a", *flag, "b"]) == 0
    text = " ".join(flag)
    hint = f"{text} is passed to exc.py; if it is meant for run, type: parallel-dl run {text} exc.py"
    assert capfd.readouterr() == ("", f"parallel-dl: {hint}\n")


@pytest.mark.parametrize(
    "line",
    ["-n 3 exc.py --name -x n", "-- exc.py -n 3", "-n 2 -- exc.py --ranks 1"],
)
def test_no_hint_for_intended_flags(program, capfd, line):
    assert main(["run", *line.split()]) == 0
    assert capfd.readouterr() == ("", "")


def test_help_has_every_description_whole(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    out, _ = capfd.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in out.replace("[ARGS]...", "")
    words = re.sub(r"-\s+", "-", " ".join(out.split()))
    for command in app.registered_commands:
        first = command.callback.__doc__.split("\n\n")[0]
        assert " ".join(first.split()) in words


# nouns that are counted; and what is never 1 where its line is said
NOUNS = """axes batches bytes channels classes dimensions elements features groups images labels layers layouts messages
microbatches numbers parameters pieces ranks rows samples stages steps tensors values weights"""
ABOVE_ONE = {
    *("many['ranks']", "ranks", "what", "layers", "RECORD", "MOST_CLASSES", "total", "size", "header + body", "length"),
    *("dimensions", "4 + 4 * dimensions", "len(self.microbatches)", "self.ranks", "whole", "_MOST_AXES", "most"),
    *("status.st_size", "count", "self.size", "self.groups", "layer.groups"),
    "job.ranks",  # of which some have started
    "layout.microbatches",  # where they are compared with one
    "boundary - 1",  # it "gives samples"
    "name",  # a layer "combines values"
    "times",  # above 2
    "_listed(shares)",  # of two ranks or more
    "has",  # a verb
    *("left", "number"),  # the watchdog imports nothing, and says "a message" itself
}


def test_counts_are_written_by_number_of():
    """f"{count} ranks" says "1 ranks"."""
    plural = re.compile(rf" (?:\w+ )?(?:{'|'.join(NOUNS.split())})\b")
    for path in (ROOT / "parallel_dl").rglob("*.py"):
        for line in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)):
            for value, text in zip(line.values, line.values[1:]):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    known = ast.unparse(value.value) in ABOVE_ONE
                    said = f"{path}:{line.lineno}: by errors.number_of, or ABOVE_ONE"
                    assert known or not plural.match(text.value), said


def test_words_of_the_pages_and_the_package():
    """Folder, boolean, and after: one word each, in code and prose."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "parallel_dl").rglob("*.py")]
    for path in pages:
        text = path.read_text().replace("_directory", "")  # a setting of MPI's
        assert not re.search(r"(?i)\bdirector(y|ies)\b|truth value|there is none of", text), path
    for path in pages:
        if path.suffix == ".md":
            assert not re.search(r"(?i)\b(behind (the|a|an|it|another|each)|as behind)\b", path.read_text()), path


def test_prose_of_the_pages_is_wrapped():
    """At most 120 characters, but for tables, which are a line for each row, and code."""
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")]
        assert not long, f"{path}:{os.linesep}{os.linesep.join(long)}"

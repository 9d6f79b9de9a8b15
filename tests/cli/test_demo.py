"""`parallel-dl demo`: ten lines of losses, the verdict, a planted bug caught and named, and commands to try next."""

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import time

import pytest
import typer
from conftest import HANG
from test_commands import PARALLEL_DL, call

from parallel_dl.cli import demo, main
from parallel_dl.cli.main import app
from parallel_dl.equivalence.mutants import MUTANTS
from parallel_dl.networks import NETWORKS

COMMANDS = typer.main.get_command(app).commands
LOSSES = [2.0 / (step + 1) for step in range(230)]
RUN = {"ranks": 1, "losses": LOSSES, "test_accuracy": 0.95}
FOUND = {
    "name": demo.BUG,
    "caught": True,
    "named": True,
    "diagnosis": "first divergence: there; likely this",
    "error": 1,
}


def test_a_folder_called_like_the_package(tmp_path, monkeypatch):
    """The commands of the demo are ours also where a clone called parallel_dl lies."""
    (tmp_path / "parallel_dl" / "cli").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = demo._result_of("schedule", "gpipe", "--pp", "2", "--microbatches", "2")
    assert found["name"] == "gpipe"


@pytest.fixture
def said(monkeypatch, capsys):
    """said(many, bug, *arguments) -> (exit status, stdout), with these results instead of those of the commands."""

    def run(many=RUN, bug=FOUND, *arguments):
        results = iter([RUN, {**many, "ranks": 2}, {"mutants": [bug]}])
        monkeypatch.setattr(demo, "_result_of", lambda *_: copy.deepcopy(next(results)))
        return main(["demo", *arguments]), capsys.readouterr().out

    return run


def rows(out):
    return [int(number) for number in re.findall(r"^ +(\d+)  +\d\.\d+ ", out, re.MULTILINE)]


def test_all_of_it():
    status, out, err = call("demo", "--epochs", 1)
    assert (status, err) == (0, "")
    assert len(rows(out)) == 10
    assert re.search(r"The two runs agree: all 23 losses to 1\d digits", out)
    assert f"planting a bug in a small network on two ranks: {demo.BUG}." in out
    assert re.search("caught: first divergence: gradient of .*\n  named:  a missing reduction over the replicas", out)
    assert len(out.splitlines()) < 30


def test_ten_lines_with_both_ends(said):
    status, out = said()
    assert (status, len(rows(out))) == (0, 10)
    assert (rows(out)[0], rows(out)[-1]) == (1, 230)
    assert demo.lines_shown(3) == [0, 1, 2]
    assert demo.lines_shown(1) == [0]
    assert demo.lines_shown(0) == []


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([*LOSSES[:-1], LOSSES[-1] * (1 + 1e-6)], "DIFFER: the losses agree to only 6.0 digits"),
        (LOSSES[:-1], "DIFFER: 229 losses on 2 ranks, 230 on one"),
    ],
)
def test_runs_that_differ(said, losses, words):
    status, out = said({**RUN, "losses": losses})
    assert status == 1
    assert words in out


@pytest.mark.parametrize("key", ["caught", "named"])
def test_a_bug_that_is_missed(said, key):
    status, out = said(RUN, {**FOUND, key: False})
    assert status == 1
    assert f"NOT {key.upper()}" in out


def test_the_json_object(said):
    status, out = said(RUN, FOUND, "--json")
    assert (status, out.count("\n")) == (0, 1)
    found = json.loads(out, parse_constant=pytest.fail)
    assert set(found) == {"agree", "agreeing_digits", "runs", "bug"}
    assert (found["agree"], found["bug"]) == (True, FOUND)
    assert [run["ranks"] for run in found["runs"]] == [1, 2]
    assert said({**RUN, "losses": LOSSES[:-1]}, FOUND, "--json")[0] == 1


def test_what_it_names_is_there():
    assert demo.BUG in {mutant.name for mutant in MUTANTS}
    assert len(demo.NEXT) == 3
    for line in demo.NEXT:
        name, *arguments = shlex.split(line)
        options = [option for parameter in COMMANDS[name].params for option in parameter.opts]
        assert {word for word in arguments if word.startswith("-")} <= set(options)
        assert name != "verify" or arguments[0] in {*NETWORKS, "--mutants"}


@pytest.mark.parametrize(
    ("stopped", "number", "status", "raised"),
    [
        (KeyboardInterrupt(), signal.SIGINT, 130, typer.Exit),  # the command has said so
        (KeyboardInterrupt(), signal.SIGINT, -2, KeyboardInterrupt),
        (SystemExit(143), signal.SIGTERM, 143, SystemExit),
    ],
)
def test_the_command_ends_its_ranks_and_says_by_which_signal(monkeypatch, stopped, number, status, raised):
    """If it were killed at once it could not, and mpirun would report ranks that failed."""
    asked = []

    class Command:
        def __init__(self, *_, **__):
            pass

        def communicate(self, timeout=None):
            asked.append(timeout)
            if timeout is None:
                raise stopped

        def send_signal(self, number):
            asked.append(number)

        def kill(self):
            asked.append("kill")

        def wait(self):
            return status

    monkeypatch.setattr(demo.subprocess, "Popen", Command)
    with pytest.raises(raised) as ended:
        demo._result_of("train", "mlp")
    assert getattr(ended.value, "exit_code", 130) == 130
    assert asked[:2] == [None, number]
    assert asked[2] >= 10
    assert asked[3:] == ["kill"]


def test_ctrl_c_is_told_once(tmp_path, environment):
    """Only the demo gets the signal, and not its command."""
    with subprocess.Popen(
        [*PARALLEL_DL, "demo", "--epochs", "1000"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        deadline = time.monotonic() + HANG
        while not any(tmp_path.iterdir()):
            assert time.monotonic() < deadline, "no command has started"
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=HANG)
    assert err in ("parallel-dl: stopped by SIGINT\n", "parallel-dl: stopped by SIGINT; ended all ranks\n")
    assert running.returncode == 130
    assert list(tmp_path.iterdir()) == []
